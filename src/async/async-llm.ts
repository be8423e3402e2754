import { type EngineConfig, resolveEngineConfig } from "../base/config.ts";
import type { DeviceName } from "../base/device-name.ts";
import type { FloatDType } from "../base/dtype.ts";
import { checkEmbedOptions, type EmbedOptions, type Pooling, readEmbeddings } from "../base/embedding.ts";
import type { EngineStats } from "../base/engine-stats.ts";
import { ConfigError, EngineDeadError, InvalidRequestError } from "../base/errors.ts";
import type { CompletionDelta, GenerationStream, RequestOutput } from "../base/outputs.ts";
import { workerScript } from "../base/program-file.ts";
import type { ResolvedSamplingParams, SamplingParams } from "../base/sampling-params.ts";
import type { ResolvedOutputs } from "../base/structured-outputs.ts";
import type { WeightSummary } from "../base/weight-summary.ts";
import type { CacheConfig } from "../engine/cache-config.ts";
import { checkRequest, checkTokens, type EngineRequest, roomOf, type TokenIds } from "../engine/request.ts";
import type { ThinkingLimit } from "../engine/thinking-matcher.ts";
import { AnswerLimits, type TurnText } from "../llm/answer-limits.ts";
import type { CreateOptions } from "../llm/llm.ts";
import { readDeltas, readOutputs } from "../llm/read-stream.ts";
import { isList, resolveSampling } from "../llm/resolve-sampling.ts";
import type { ModelConfig } from "../models/config.ts";
import {
  type ChatPrompt,
  type EncodedPrompt,
  type Prompt,
  PromptEncoder,
  type PromptOptions,
} from "../tokenizer/prompt-encoder.ts";
import { TokenTable } from "../tokenizer/token-table.ts";
import type { LoadListeners, StepReport } from "./engine-client.ts";
import { type Replica, ReplicaSet } from "./replica-set.ts";
import { TextPool, type TextPoolOptions } from "./text-pool.ts";

export interface AsyncCreateOptions extends CreateOptions {
  /**
   * Engines that share the requests, each with a copy of the model: on GPUs of its own, `tensorParallelSize` of them from
   * `gpuIndex` on, or in a thread of its own on the CPU. Default 1.
   */
  dataParallelSize?: number;
}

/** How an `AsyncLLM` starts. */
export interface StartOptions extends Pick<LoadListeners, "onProgress"> {
  /** Default 1. */
  readonly dataParallelSize?: number;
}

export interface SubmitOptions {
  /** Ends the request early; its completions then finish with "abort". */
  readonly signal?: AbortSignal;
  /** Add the tokenizer's special tokens to text prompts. Default true, for conversations false. */
  readonly addSpecialTokens?: boolean;
  /** Keep only the last N prompt tokens; −1: as many as fit beside `maxTokens`. Default all. */
  readonly truncatePromptTokens?: number;
  /** The most tokens of a completion whose `maxTokens` was left out, or null. Default what the parameters say. */
  readonly maxOutputTokens?: number;
  /**
   * Limits of the turn that follows a rendered prompt. Default: those of the sampling parameters, whose grammar holds the reply to a
   * conversation from where the model's thoughts end, as its chat template has them.
   */
  readonly limitTurn?: (prompt: string) => TurnLimit;
  /** Compute one vector of each prompt's hidden states, its request's `embedding`, and generate nothing. Default none. */
  readonly pooling?: Pooling | undefined;
  /** Called with all requests once they are checked, before any is queued; an error that it throws refuses them all. */
  readonly onChecked?: (requests: readonly EngineRequest[]) => void;
}

/** What a turn is held to. */
export interface TurnLimit {
  /** Its text, in place of `structuredOutputs`, which must not be given then. */
  readonly text?: TurnText | undefined;
  readonly thinking?: ThinkingLimit | undefined;
}

export interface Tokenization {
  /** The text, conversations rendered; undefined for token ids. */
  readonly prompt: string | undefined;
  readonly tokenIds: readonly number[];
  /** The tokens as the vocabulary spells them. */
  readonly tokenStrings: readonly string[];
}

/** The scripts that an `AsyncLLM` runs in Workers. */
export interface WorkerScripts {
  readonly engine: URL;
  readonly text: URL;
  readonly textPool?: TextPoolOptions;
}

export const WORKER_SCRIPTS: WorkerScripts = {
  engine: workerScript("src/async/engine-worker.ts"),
  text: workerScript("src/async/text-worker.ts"),
};

/** The encoder of prompts that are token ids already. */
const TOKENS_ONLY = new PromptEncoder(undefined, undefined);

/** The most replicas of one process. */
const MAX_REPLICAS = 64;

/**
 * A model and its engine in a Worker, or several, for servers: this thread neither computes nor tokenizes. Text is prepared
 * in Workers of its own. Dispose of it, or the process does not end.
 */
export class AsyncLLM implements AsyncDisposable {
  readonly #answers: AnswerLimits;
  #numUnfinished = 0;
  #nextRequest = 0;
  #tokens: Promise<TokenTable> | undefined;
  /** Resolved, and replaced, when nothing is left to do. */
  #idle = Promise.withResolvers<void>();

  /**
   * Loads a model in a Worker for each replica.
   * @param model as for `LLM.create`, and so are options and errors.
   */
  static async create(model?: string, options: AsyncCreateOptions = {}): Promise<AsyncLLM> {
    const { onProgress, dataParallelSize = 1, ...engineOptions } = options;
    const config = resolveEngineConfig(engineOptions);
    if (!Number.isInteger(dataParallelSize) || dataParallelSize < 1 || dataParallelSize > MAX_REPLICAS) {
      const message = `dataParallelSize must be an integer from 1 to ${MAX_REPLICAS}, not ${dataParallelSize}`;
      throw new ConfigError("dataParallelSize", message);
    }
    return AsyncLLM.start(WORKER_SCRIPTS, model, config, { onProgress, dataParallelSize });
  }

  /**
   * Starts the engine workers and a text worker, which loads the tokenizer while the others load weights.
   * @internal Use `AsyncLLM.create`.
   */
  static async start(
    scripts: WorkerScripts,
    model: string | undefined,
    config: EngineConfig,
    { onProgress, dataParallelSize: count = 1 }: StartOptions = {},
  ): Promise<AsyncLLM> {
    const folder = Promise.withResolvers<string>();
    const listeners = { onProgress, onFolder: folder.resolve };
    const starting = ReplicaSet.start(scripts.engine, { model, config, count }, listeners);
    const text = config.skipTokenizerInit ? undefined : new TextPool(scripts.text, config, scripts.textPool);
    const opening = text && folder.promise.then((path) => text.open(path));
    opening?.catch(() => {}); // Reported where it is awaited, unless the engine fails first.
    let engines: ReplicaSet | undefined;
    try {
      engines = await starting;
      const info = await opening;
      return new AsyncLLM(engines, text, config, info?.chatTemplate);
    } catch (error) {
      const reason = new EngineDeadError("the model could not be loaded", { cause: error });
      await Promise.all([engines?.close(reason), text?.close(reason)]);
      throw error;
    }
  }

  private constructor(
    private readonly engines: ReplicaSet,
    private readonly text: TextPool | undefined,
    /** The options this model was created with, defaults filled in. */
    readonly config: EngineConfig,
    /** The Jinja source that conversations are rendered with; undefined: there is none. */
    readonly chatTemplate: string | undefined,
  ) {
    this.#answers = new AnswerLimits(chatTemplate);
  }

  /** Name, folder or file of the model. */
  get model(): string {
    return this.engines.info.name;
  }

  /** The model's config.json, read and checked. */
  get modelConfig(): ModelConfig {
    return this.engines.info.modelConfig;
  }

  /** Prompt plus output tokens that one sequence can have. */
  get maxModelLen(): number {
    return this.engines.info.limits.maxModelLen;
  }

  /** The device that the model runs on. */
  get device(): DeviceName {
    return this.engines.info.device;
  }

  /** The dtype that the model computes in. */
  get dtype(): FloatDType {
    return this.engines.info.dtype;
  }

  /** The form of the weights, and the bytes that each rank of the first replica holds of them. */
  get weights(): WeightSummary {
    return this.engines.info.weights;
  }

  /** The KV cache of the first replica; those of others may have more or fewer blocks. */
  get cacheConfig(): CacheConfig {
    return this.engines.info.cacheConfig;
  }

  /** The engines, by their index; those that have died stay among them. */
  get replicas(): readonly Replica[] {
    return this.engines.replicas;
  }

  /** Counters and gauges as of the latest steps, summed over the replicas; `kvUsage` is a share of all that live. */
  get stats(): EngineStats {
    return this.engines.stats;
  }

  /** The error that the last replica died of, or that all were disposed of; undefined while one lives. */
  get failure(): EngineDeadError | undefined {
    return this.engines.failure;
  }

  /** Seconds since the engine last finished a step while it has work; of several, the one that does best. 0 when idle. */
  get secondsWithoutProgress(): number {
    return this.engines.secondsWithoutProgress;
  }

  /** Requests being prepared, queued or running. */
  get numUnfinished(): number {
    return this.#numUnfinished;
  }

  /**
   * Tokenizes, checks and queues one prompt or conversation, or several together: all of them or, if one is refused, none.
   * The deltas of their stream are increments whatever `outputKind` says, but "finalOnly" brings one for each completion.
   * @param params one for all prompts, or one for each.
   * @throws InvalidRequestError, ContextLengthError or ChatTemplateError before anything is queued; RequestFailedError
   * if the text could not be prepared; EngineDeadError.
   */
  async submit(
    prompts: Prompt | ChatPrompt | readonly (Prompt | ChatPrompt)[],
    params: SamplingParams | readonly SamplingParams[] = {},
    options: SubmitOptions = {},
  ): Promise<GenerationStream> {
    const list = isList(prompts) ? prompts : [prompts];
    return this.#submit(list, this.#resolve(list, params), options);
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
    yield* readDeltas(await this.submit(prompt, params, options));
  }

  /** Continues prompts or conversations: a list of them gives a list of outputs in their order. @throws as `submit`. */
  async generate(
    prompt: Prompt | ChatPrompt,
    params?: SamplingParams,
    options?: SubmitOptions,
  ): Promise<RequestOutput>;
  async generate(
    prompts: readonly (Prompt | ChatPrompt)[],
    params?: SamplingParams | readonly SamplingParams[],
    options?: SubmitOptions,
  ): Promise<RequestOutput[]>;
  async generate(
    prompts: Prompt | ChatPrompt | readonly (Prompt | ChatPrompt)[],
    params: SamplingParams | readonly SamplingParams[] = {},
    options: SubmitOptions = {},
  ): Promise<RequestOutput | RequestOutput[]> {
    const list = isList(prompts) ? prompts : [prompts];
    const samplings = this.#resolve(list, params);
    // The deltas before the last are for nobody.
    const quiet = samplings.map((sampling) => ({ ...sampling, outputKind: "finalOnly" as const }));
    const outputs = await readOutputs(await this.#submit(list, quiet, options));
    return isList(prompts) ? outputs : outputs[0]!;
  }

  /** The tokens of a prompt or conversation. @throws as `submit`, but of any length. */
  async tokenize(prompt: Prompt | ChatPrompt, options: SubmitOptions = {}): Promise<Tokenization> {
    this.engines.assertAlive();
    const kept = this.#keptTokens(options, 0);
    const { addSpecialTokens } = options;
    const { text, tokenIds } = await this.#encode(prompt, { addSpecialTokens });
    const ids = checkTokens("promptTokenIds", tokenIds.slice(-kept), this.modelConfig.vocabSize);
    const tokenStrings = await this.#textJobs("prompt").call("tokenStrings", ids);
    return { prompt: text, tokenIds: Array.from(ids), tokenStrings };
  }

  /** The text of tokens; special ones are left out unless they are asked for. @throws InvalidRequestError */
  async detokenize(
    tokenIds: readonly number[],
    { skipSpecialTokens = true }: { readonly skipSpecialTokens?: boolean } = {},
  ): Promise<string> {
    this.engines.assertAlive();
    const ids = checkTokens("tokenIds", tokenIds, this.modelConfig.vocabSize);
    return this.#textJobs("tokenIds").call("detokenize", { ids, skipSpecialTokens });
  }

  /** The bytes of each token, made when it is first asked for. Without a tokenizer no token has any. */
  async tokenTable(): Promise<TokenTable> {
    if (!this.text) return new TokenTable(undefined);
    this.#tokens ??= this.text.call("tokens", undefined).then((tokens) => new TokenTable(tokens));
    this.#tokens.catch(() => {
      this.#tokens = undefined;
    });
    return this.#tokens;
  }

  /** Vectors of texts, as `LLM.embed`. @throws as `submit`; the signal's reason. */
  async embed(prompts: Prompt | readonly Prompt[], options: EmbedOptions = {}): Promise<Float32Array[]> {
    checkEmbedOptions(options, this.modelConfig.hiddenSize);
    const { pooling = "last", signal } = options;
    return readEmbeddings(await this.submit(prompts, {}, { pooling, ...(signal && { signal }) }), options);
  }

  /** Forgets all cached prefixes. False when requests are running on a replica, which then keeps its own. */
  resetPrefixCache(): Promise<boolean> {
    return this.engines.resetPrefixCache();
  }

  /** Calls `listener` for every step of a replica from now on. @returns what ends that. */
  onStep(listener: (report: StepReport) => void): () => void {
    return this.engines.onStep(listener);
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

  /** Ends pending requests with EngineDeadError, frees the devices and ends the Workers. Safe to call twice. */
  async dispose(): Promise<void> {
    const reason = new EngineDeadError("the AsyncLLM was disposed of");
    await Promise.all([this.engines.close(reason), this.text?.close(reason)]);
  }

  /** As `dispose`. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }

  #resolve(
    prompts: readonly (Prompt | ChatPrompt)[],
    params: SamplingParams | readonly SamplingParams[],
  ): ResolvedSamplingParams[] {
    this.engines.assertAlive();
    const { limits, defaultSampling } = this.engines.info;
    return resolveSampling(prompts, params, {
      ...{ vocabSize: limits.vocabSize, maxLogprobs: this.config.maxLogprobs },
      ...{ defaults: defaultSampling, hasTokenizer: this.text !== undefined },
    });
  }

  async #submit(
    prompts: readonly (Prompt | ChatPrompt)[],
    samplings: readonly ResolvedSamplingParams[],
    options: SubmitOptions,
  ): Promise<GenerationStream> {
    const { limits } = this.engines.info;
    const arrivalTime = performance.now() / 1000;
    const { addSpecialTokens } = options;
    const prepare = async (prompt: Prompt | ChatPrompt, given: ResolvedSamplingParams) => {
      const sampling = bounded(given, options.maxOutputTokens);
      const { structuredOutputs: outputs } = sampling;
      const thinks = options.limitTurn === undefined && outputs && this.#answers.thinksBefore(prompt);
      const kept = this.#keptTokens(options, sampling.maxTokens ?? 1);
      const [{ text, tokenIds, cacheSalt }, badWordTokens, grammar] = await Promise.all([
        this.#encode(prompt, { addSpecialTokens, room: kept === Infinity ? roomOf(limits) : undefined }),
        sampling.badWords.length > 0
          ? this.#textJobs("badWords").call("badWordTokens", sampling.badWords)
          : [],
        outputs && !thinks ? this.#grammar(outputs) : undefined,
      ]);
      const limit: TurnLimit | undefined = thinks
        ? { text: this.#answers.of(prompt as ChatPrompt, text ?? "", outputs, await this.tokenTable()) }
        : options.limitTurn?.(text ?? "");
      const id = String(this.#nextRequest++);
      const promptTokenIds = tokenIds.slice(-kept);
      const draft = {
        ...{ id, promptTokenIds, sampling, badWordTokens, cacheSalt, arrivalTime, thinking: limit?.thinking },
        pooling: options.pooling,
        ...(limit?.text ? await this.#limited(limit.text) : { grammar }),
      };
      return { request: checkRequest(draft, limits), prompt: text };
    };
    this.#numUnfinished += prompts.length;
    try {
      const checked = await Promise.all(prompts.map((prompt, i) => prepare(prompt, samplings[i]!)));
      options.onChecked?.(checked.map(({ request }) => request));
      return this.engines.add(checked, { signal: options.signal, onEnd: () => this.#ended(1) });
    } catch (error) {
      this.#ended(prompts.length);
      throw error;
    }
  }

  #grammar(outputs: ResolvedOutputs): Promise<string> {
    return this.#textJobs(outputs.param).call("grammar", outputs);
  }

  async #limited({ shape, param, markers }: TurnText) {
    return { grammar: await this.#textJobs(param).call("shapeGrammar", { shape, param }), markers };
  }

  async #encode(
    prompt: Prompt | ChatPrompt,
    options: PromptOptions,
  ): Promise<Omit<EncodedPrompt, "tokenIds"> & { readonly tokenIds: TokenIds }> {
    const isTokens = typeof prompt === "object" && prompt !== null && "promptTokenIds" in prompt;
    if (isTokens || this.text === undefined) return TOKENS_ONLY.encode(prompt);
    return this.text.call("encode", { prompt, ...options });
  }

  /** Number of a prompt's last tokens that stay; −1 asks for what leaves room for `output` tokens. */
  #keptTokens(
    { truncatePromptTokens: count = Number.POSITIVE_INFINITY }: SubmitOptions,
    output: number,
  ): number {
    if (count === Number.POSITIVE_INFINITY || (Number.isSafeInteger(count) && count > 0)) return count;
    if (count !== -1) {
      const message = "truncatePromptTokens must be a positive integer, or -1";
      throw new InvalidRequestError("truncatePromptTokens", message);
    }
    return Math.max(1, roomOf(this.engines.info.limits) - output);
  }

  #textJobs(param: string): TextPool {
    if (!this.text) throw new InvalidRequestError(param, "there is no tokenizer");
    return this.text;
  }

  #ended(count: number): void {
    this.#numUnfinished -= count;
    if (this.#numUnfinished > 0) return;
    this.#idle.resolve();
    this.#idle = Promise.withResolvers();
  }
}

/** Bounds the output of a request that does not say how much it wants. */
function bounded(sampling: ResolvedSamplingParams, most: number | undefined): ResolvedSamplingParams {
  const { maxTokens, isMaxTokensDefault } = sampling;
  if (most === undefined || (maxTokens !== undefined && !isMaxTokensDefault)) return sampling;
  return { ...sampling, maxTokens: Math.min(maxTokens ?? most, most), isMaxTokensDefault: true };
}
