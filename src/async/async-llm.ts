import { type EngineConfig, resolveEngineConfig } from "../base/config.ts";
import type { FloatDType } from "../base/dtype.ts";
import { EngineDeadError, InvalidRequestError } from "../base/errors.ts";
import type { CompletionDelta, RequestOutput } from "../base/outputs.ts";
import type { ResolvedSamplingParams, SamplingParams } from "../base/sampling-params.ts";
import type { EngineStats } from "../engine/engine.ts";
import { bannedTokens, checkRequest, checkTokens } from "../engine/request.ts";
import type { CreateOptions } from "../llm/llm.ts";
import { resolveSampling } from "../llm/request-builder.ts";
import type { ModelConfig } from "../models/config.ts";
import { type ChatPrompt, type Prompt, PromptEncoder } from "../tokenizer/prompt-encoder.ts";
import { CompletionBuilder } from "./completion-builder.ts";
import { EngineClient, type StepReport } from "./engine-client.ts";
import type { GenerationStream } from "./request-stream.ts";
import { TextClient } from "./text-client.ts";

export interface SubmitOptions {
  /** Ends the request early; its completions then finish with "abort". */
  readonly signal?: AbortSignal;
  /** Add the tokenizer's special tokens to text prompts. Default true, for conversations false. */
  readonly addSpecialTokens?: boolean;
  /** Keep only the last N prompt tokens; −1: as many as fit beside `maxTokens`. Default all. */
  readonly truncatePromptTokens?: number;
}

export interface Tokenization {
  /** The text, conversations rendered; undefined for token ids. */
  readonly prompt: string | undefined;
  readonly tokenIds: readonly number[];
  /** The tokens as the vocabulary spells them. */
  readonly tokenStrings: readonly string[];
}

const ENGINE_WORKER = new URL("./engine-worker.ts", import.meta.url);
const TEXT_WORKER = new URL("./text-worker.ts", import.meta.url);

/** Handles token ids without a tokenizer. */
const TOKENS_ONLY = new PromptEncoder(undefined, undefined);

/**
 * A model and its engine in a Worker, for servers: this thread neither computes nor tokenizes. Text is prepared in a
 * second Worker. Dispose of it, or the process does not end.
 */
export class AsyncLLM implements AsyncDisposable {
  #numUnfinished = 0;
  /** Resolved, and replaced, when nothing is left to do. */
  #idle = Promise.withResolvers<void>();

  /**
   * Loads a model in a Worker.
   * @param model as for `LLM.create`, and so are options and errors.
   */
  static async create(model?: string, options: CreateOptions = {}): Promise<AsyncLLM> {
    const { onProgress, ...engineOptions } = options;
    const config = resolveEngineConfig(engineOptions);
    const engine = await EngineClient.start(ENGINE_WORKER, { model, config }, onProgress);
    try {
      const { folder } = engine.info;
      const text = config.skipTokenizerInit ? undefined : await TextClient.start(TEXT_WORKER, folder, config);
      return new AsyncLLM(engine, text, config);
    } catch (error) {
      await engine.close(new EngineDeadError("the tokenizer could not be loaded", { cause: error }));
      throw error;
    }
  }

  /** @internal Use `AsyncLLM.create`. */
  constructor(
    private readonly engine: EngineClient,
    private readonly text: TextClient | undefined,
    /** The options this model was created with, defaults filled in. */
    readonly config: EngineConfig,
  ) {}

  /** Name or folder of the model. */
  get model(): string {
    return this.engine.info.name;
  }

  get modelConfig(): ModelConfig {
    return this.engine.info.modelConfig;
  }

  /** Prompt plus output tokens that one sequence can have. */
  get maxModelLen(): number {
    return this.engine.info.limits.maxModelLen;
  }

  /** Where the model runs. */
  get device(): "cpu" | "cuda" {
    return this.engine.info.device;
  }

  /** What the model computes in. */
  get dtype(): FloatDType {
    return this.engine.info.dtype;
  }

  get cacheConfig(): { readonly blockSize: number; readonly numBlocks: number } {
    return this.engine.info.cacheConfig;
  }

  /** Counters and gauges as of the latest step. */
  get stats(): EngineStats {
    return this.engine.stats;
  }

  /** What the engine died of, or that it was disposed of; undefined while it lives. */
  get failure(): EngineDeadError | undefined {
    return this.engine.failure;
  }

  /** Seconds since the engine last finished a step while it has work; 0 when idle. */
  get secondsWithoutProgress(): number {
    return this.engine.secondsWithoutProgress;
  }

  /** Requests being prepared, queued or running. */
  get numUnfinished(): number {
    return this.#numUnfinished;
  }

  /**
   * Tokenizes, validates and queues a request, with all of its `n` completions or none. Read the deltas from the stream;
   * a slow reader holds up nobody. They are increments whatever `outputKind` says, but "finalOnly" brings one for each
   * completion.
   * @throws InvalidRequestError, ContextLengthError or ChatTemplateError before anything is queued; RequestFailedError
   * if the text could not be prepared; EngineDeadError.
   */
  async submit(
    prompt: Prompt | ChatPrompt,
    params: SamplingParams = {},
    options: SubmitOptions = {},
  ): Promise<GenerationStream> {
    this.engine.assertAlive();
    const { limits, timeOrigin, defaultSampling, eosTokenIds } = this.engine.info;
    const arrivalTime = (performance.timeOrigin - timeOrigin + performance.now()) / 1000;
    const { maxLogprobs } = this.config;
    const rules = { vocabSize: limits.vocabSize, maxLogprobs, defaults: defaultSampling };
    const hasTokenizer = this.text !== undefined;
    const sampling = resolveSampling(prompt, params, { ...rules, hasTokenizer });
    bannedTokens(sampling, eosTokenIds);
    const truncate = this.#truncation(sampling, options.truncatePromptTokens);
    this.#numUnfinished++;
    try {
      const encoded = await this.#encode(prompt, options.addSpecialTokens, sampling.badWords);
      const { text, badWordTokens, cacheSalt } = encoded;
      const promptTokenIds = truncate(encoded.tokenIds);
      const request = { promptTokenIds, sampling, badWordTokens, arrivalTime };
      checkRequest({ id: "", ...request, ...(cacheSalt !== undefined && { cacheSalt }) }, limits);
      const { signal } = options;
      return this.engine.add({ ...request, prompt: text, cacheSalt, signal, onEnd: () => this.#ended() });
    } catch (error) {
      this.#ended();
      throw error;
    }
  }

  /**
   * Continues a prompt or conversation and yields the text as it comes. Leaving the loop early aborts the request. With
   * `outputKind` "cumulative" each item holds all text and tokens so far.
   */
  async *stream(
    prompt: Prompt | ChatPrompt,
    params: SamplingParams = {},
    options: SubmitOptions = {},
  ): AsyncGenerator<CompletionDelta, void, undefined> {
    const stream = await this.submit(prompt, params, options);
    const builders = stream.sampling.outputKind === "cumulative" ? completions(stream) : undefined;
    for await (const delta of stream) {
      const builder = builders?.[delta.index];
      builder?.add(delta);
      yield builder ? { ...delta, ...builder.soFar() } : delta;
    }
  }

  /** Continues a prompt or conversation. @throws as `submit`. */
  async generate(
    prompt: Prompt | ChatPrompt,
    params: SamplingParams = {},
    options: SubmitOptions = {},
  ): Promise<RequestOutput> {
    const stream = await this.submit(prompt, params, options);
    const builders = completions(stream);
    for await (const delta of stream) builders[delta.index]!.add(delta);
    const { promptTokenIds, promptLogprobs, numCachedTokens, metrics } = stream;
    return {
      requestId: stream.id,
      ...(stream.prompt !== undefined && { prompt: stream.prompt }),
      promptTokenIds,
      ...(promptLogprobs && { promptLogprobs }),
      outputs: builders.map((builder) => builder.output()),
      ...{ finished: true, numCachedTokens, metrics },
    };
  }

  /** The tokens of a prompt or conversation. @throws as `submit`, but of any length. */
  async tokenize(prompt: Prompt | ChatPrompt, options: SubmitOptions = {}): Promise<Tokenization> {
    this.engine.assertAlive();
    const truncate = this.#truncation(undefined, options.truncatePromptTokens);
    const { text, tokenIds: all } = await this.#encode(prompt, options.addSpecialTokens, []);
    const tokenIds = truncate(all);
    checkTokens("promptTokenIds", tokenIds, this.modelConfig.vocabSize);
    const tokenStrings = await this.#tokenizing("prompt").call("tokenStrings", tokenIds);
    return { prompt: text, tokenIds, tokenStrings };
  }

  /** The text of tokens, special ones left out. @throws InvalidRequestError */
  async detokenize(tokenIds: readonly number[]): Promise<string> {
    this.engine.assertAlive();
    checkTokens("tokenIds", tokenIds, this.modelConfig.vocabSize);
    return this.#tokenizing("tokenIds").call("detokenize", tokenIds);
  }

  /** Forgets all cached prefixes. False when requests are running, which hold theirs. */
  resetPrefixCache(): Promise<boolean> {
    return this.engine.resetPrefixCache();
  }

  /** Calls `listener` for every step from now on. @returns what ends that. */
  onStep(listener: (report: StepReport) => void): () => void {
    return this.engine.onStep(listener);
  }

  /** Resolves when nothing is left to do. @throws DOMException "TimeoutError" after `seconds`. */
  async drain(seconds: number): Promise<void> {
    if (this.#numUnfinished === 0) return;
    const timeout = Promise.withResolvers<void>();
    const timer = setTimeout(() => {
      const message = `${this.#numUnfinished} requests are unfinished after ${seconds} s`;
      timeout.reject(new DOMException(message, "TimeoutError"));
    }, seconds * 1000);
    await Promise.race([this.#idle.promise, timeout.promise]).finally(() => clearTimeout(timer));
  }

  /** Ends pending requests with EngineDeadError, frees the device and ends the Workers. Safe to call twice. */
  async dispose(): Promise<void> {
    const reason = new EngineDeadError("the AsyncLLM was disposed of");
    await Promise.all([this.engine.close(reason), this.text?.close(reason)]);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }

  async #encode(
    prompt: Prompt | ChatPrompt,
    addSpecialTokens: boolean | undefined,
    badWords: readonly string[],
  ) {
    const isTokens = typeof prompt === "object" && prompt !== null && "promptTokenIds" in prompt;
    if (this.text === undefined || (isTokens && badWords.length === 0))
      return { ...TOKENS_ONLY.encode(prompt, addSpecialTokens), badWordTokens: [] };
    return this.text.call("encode", { prompt, addSpecialTokens, badWords });
  }

  /** What cuts prompts to the tokens asked for; without sampling −1 stands for the context. */
  #truncation(sampling: ResolvedSamplingParams | undefined, count: number | undefined) {
    if (count === undefined) return (tokenIds: readonly number[]) => tokenIds;
    if (!Number.isSafeInteger(count) || count < -1 || count === 0) {
      const message = "truncatePromptTokens must be a positive integer, or -1";
      throw new InvalidRequestError("truncatePromptTokens", message);
    }
    const { maxModelLen, poolTokens } = this.engine.info.limits;
    const output = sampling ? (sampling.maxTokens ?? 1) : 0;
    const most = count > 0 ? count : Math.max(1, Math.min(maxModelLen, poolTokens) - output);
    return (tokenIds: readonly number[]) => tokenIds.slice(-most);
  }

  #tokenizing(param: string): TextClient {
    if (!this.text) throw new InvalidRequestError(param, "there is no tokenizer");
    return this.text;
  }

  #ended(): void {
    if (--this.#numUnfinished > 0) return;
    this.#idle.resolve();
    this.#idle = Promise.withResolvers();
  }
}

function completions({ sampling }: GenerationStream): CompletionBuilder[] {
  const hasLogprobs = sampling.logprobs !== undefined;
  return Array.from({ length: sampling.n }, (_, index) => new CompletionBuilder(index, hasLogprobs));
}
