import { type EngineConfig, type EngineOptions, resolveEngineConfig } from "../base/config.ts";
import type { DeviceName } from "../base/device-name.ts";
import type { FloatDType } from "../base/dtype.ts";
import { checkEmbedOptions, type EmbedOptions, type Pooling, readEmbeddings } from "../base/embedding.ts";
import { EngineDeadError } from "../base/errors.ts";
import type { CompletionDelta, RequestOutput, SubmittedRequest } from "../base/outputs.ts";
import type { SamplingParams } from "../base/sampling-params.ts";
import type { ResolvedOutputs } from "../base/structured-outputs.ts";
import type { WeightSummary } from "../base/weight-summary.ts";
import { checkRequest, roomOf } from "../engine/request.ts";
import { GrammarCache } from "../grammar/grammar-cache.ts";
import type { ModelConfig } from "../models/config.ts";
import type { ChatMessage } from "../tokenizer/chat-template.ts";
import type { ChatOptions, ChatPrompt, Prompt, PromptEncoder } from "../tokenizer/prompt-encoder.ts";
import { packTokens, TokenTable } from "../tokenizer/token-table.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { AnswerLimits } from "./answer-limits.ts";
import { type LoadedModel, type LoadProgress, loadModel } from "./load-model.ts";
import { OpenRequests } from "./open-requests.ts";
import { readDeltas, readOutputs } from "./read-stream.ts";
import type { RequestStream } from "./request-stream.ts";
import { isList, resolveSampling } from "./resolve-sampling.ts";
import { StepLoop } from "./step-loop.ts";

export interface CreateOptions extends EngineOptions {
  /** Told how downloading and loading go on. */
  onProgress?: (progress: LoadProgress) => void;
}

/** How a call of `generate` goes on and ends. */
export interface GenerateOptions {
  /** Ends the requests early; their outputs then have finishReason "abort". */
  signal?: AbortSignal;
  /** Called after each step with what was generated so far. */
  onProgress?: (progress: GenerateProgress) => void;
}

/** The progress of a call of `generate`. */
export interface GenerateProgress {
  readonly finishedPrompts: number;
  readonly totalPrompts: number;
  readonly outputTokens: number;
}

/** The same for `chat`, and how conversations are rendered. */
export interface ChatGenerateOptions extends GenerateOptions, ChatOptions {}

interface SubmitOptions {
  readonly signal?: AbortSignal | undefined;
  /** Nobody reads the deltas before the end. */
  readonly finalOnly?: boolean;
  /** As in `EngineRequest`. */
  readonly logits?: boolean;
  readonly pooling?: Pooling;
}

/**
 * A model and its engine, in this thread. Requests of all calls share one batch, so `generate`, `chat` and `stream` may
 * run at the same time. Outputs come in the order of the prompts.
 */
export class LLM {
  readonly #loaded: LoadedModel;
  readonly #open = new OpenRequests();
  readonly #loop: StepLoop;
  readonly #encoder: PromptEncoder;
  readonly #grammars = new GrammarCache();
  #answers: AnswerLimits | undefined;
  #tokens: TokenTable | undefined;
  #nextRequest = 0;

  private constructor(
    loaded: LoadedModel,
    /** The options this model was created with, defaults filled in. */
    readonly config: EngineConfig,
  ) {
    this.#loaded = loaded;
    this.#loop = new StepLoop(loaded.engine, this.#open);
    loaded.onFailure((reason) => this.#loop.stop(reason));
    this.#encoder = loaded.encoder!;
  }

  /**
   * Loads a model.
   * @param model a folder, a GGUF file, a Hugging Face id such as `Qwen/Qwen3-0.6B`, or nothing for the embedded model.
   * @throws ConfigError, ModelNotFoundError, ModelDataError, DownloadError or DeviceError.
   */
  static async create(model?: string, options: CreateOptions = {}): Promise<LLM> {
    const { onProgress, ...engineOptions } = options;
    const config = resolveEngineConfig(engineOptions);
    return new LLM(await loadModel(model, config, { onProgress, withEncoder: true }), config);
  }

  /** Name, folder or file of the model. */
  get model(): string {
    return this.#loaded.name;
  }

  /** The model's config.json, read and checked. */
  get modelConfig(): ModelConfig {
    return this.#loaded.modelConfig;
  }

  /** Prompt plus output tokens that one sequence can have. */
  get maxModelLen(): number {
    return this.#loaded.engine.limits.maxModelLen;
  }

  /** The device that the model runs on. */
  get device(): DeviceName {
    return this.#loaded.device;
  }

  /** The dtype that the model computes in. */
  get dtype(): FloatDType {
    return this.#loaded.dtype;
  }

  /** The form of the weights, and the bytes that each rank holds of them. */
  get weights(): WeightSummary {
    return this.#loaded.weights;
  }

  /** Undefined with `skipTokenizerInit`. */
  get tokenizer(): Tokenizer | undefined {
    return this.#loaded.tokenizer;
  }

  /**
   * Continues one prompt or many.
   * @param params one for all prompts, or one for each.
   * @throws InvalidRequestError or ContextLengthError for any of the prompts, before any is started; EngineDeadError.
   */
  async generate(
    prompts: Prompt | readonly Prompt[],
    params: SamplingParams | readonly SamplingParams[] = {},
    options: GenerateOptions = {},
  ): Promise<RequestOutput[]> {
    return this.#generate(isList(prompts) ? prompts : [prompts], params, options);
  }

  /**
   * Continues one conversation or many, rendered with the model's chat template. Without `maxTokens` a reply may fill the
   * context.
   * @throws ChatTemplateError when the template fails; otherwise as `generate`.
   */
  async chat(
    messages: readonly ChatMessage[] | readonly (readonly ChatMessage[])[],
    params: SamplingParams | readonly SamplingParams[] = {},
    options: ChatGenerateOptions = {},
  ): Promise<RequestOutput[]> {
    const conversations = isConversations(messages) ? messages : [messages];
    const prompts = conversations.map((conversation) => ({ messages: conversation, chat: options }));
    return this.#generate(prompts, params, options);
  }

  /**
   * Continues a prompt and yields the text as it comes. Leaving the loop early aborts the request. With `outputKind`
   * "cumulative" each item holds all text and tokens so far; with "finalOnly" one item comes at the end of a completion.
   */
  async *stream(
    prompt: Prompt,
    params: SamplingParams = {},
    options: { signal?: AbortSignal } = {},
  ): AsyncGenerator<CompletionDelta, void, undefined> {
    yield* readDeltas(this.#submit([prompt], params, options));
  }

  /** The same for a conversation. */
  async *streamChat(
    messages: readonly ChatMessage[],
    params: SamplingParams = {},
    options: ChatOptions & { signal?: AbortSignal } = {},
  ): AsyncGenerator<CompletionDelta, void, undefined> {
    yield* readDeltas(this.#submit([{ messages, chat: options }], params, options));
  }

  /**
   * Logits float32 [tokens, vocabSize] of a prompt, row by row: row i predicts token i + 1.
   * @throws ContextLengthError for more than 2^30 of them; RequestFailedError; otherwise as `generate`.
   */
  async logits(promptTokenIds: readonly number[]): Promise<Float32Array> {
    const stream = this.#submit([{ promptTokenIds }], {}, { logits: true });
    const [output] = await readOutputs(stream);
    const { error } = output!.outputs[0]!;
    if (error) throw error;
    return stream.requests[0]!.logits!;
  }

  /**
   * Vectors of texts, float32 [hiddenSize] each: hidden states after the final norm. Any model gives some; those trained for it
   * give good ones.
   * @throws as `generate`.
   */
  async embed(prompts: Prompt | readonly Prompt[], options: EmbedOptions = {}): Promise<Float32Array[]> {
    checkEmbedOptions(options, this.modelConfig.hiddenSize);
    const { pooling = "last", signal } = options;
    const list = isList(prompts) ? prompts : [prompts];
    return readEmbeddings(this.#submit(list, {}, { pooling, ...(signal && { signal }) }), options);
  }

  /** Text of a conversation, as the model sees it. */
  renderChat(messages: readonly ChatMessage[], options: ChatOptions = {}): string {
    return this.#encoder.renderChat(messages, options);
  }

  /** Forgets all cached prefixes. False when requests are running, which hold theirs. */
  resetPrefixCache(): boolean {
    return this.#loaded.engine.resetPrefixCache();
  }

  /** Counters and gauges of the engine. */
  stats() {
    return this.#loaded.engine.stats();
  }

  /** Ends running requests with EngineDeadError and frees the device. Safe to call twice. */
  dispose(): void {
    this.#loop.stop(new EngineDeadError("the LLM was disposed of"));
    this.#loaded.dispose();
  }

  /** As `dispose`. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.dispose();
  }

  async #generate(
    prompts: readonly (Prompt | ChatPrompt)[],
    params: SamplingParams | readonly SamplingParams[],
    { signal, onProgress }: GenerateOptions,
  ): Promise<RequestOutput[]> {
    const stream = this.#submit(prompts, params, { signal, finalOnly: onProgress === undefined });
    return readOutputs(stream, onProgress && progressReporter(stream.requests, onProgress));
  }

  /** Checks and queues all prompts or, if one is refused, none. */
  #submit(
    prompts: readonly (Prompt | ChatPrompt)[],
    params: SamplingParams | readonly SamplingParams[],
    { signal, finalOnly, logits = false, pooling }: SubmitOptions,
  ): RequestStream {
    const { engine, tokenizer, defaultSampling } = this.#loaded;
    const arrivalTime = performance.now() / 1000;
    const samplings = resolveSampling(prompts, params, {
      vocabSize: engine.limits.vocabSize,
      maxLogprobs: this.config.maxLogprobs,
      defaults: defaultSampling,
      hasTokenizer: tokenizer !== undefined,
    });
    const checked = prompts.map((prompt, i) => {
      const sampling = finalOnly ? { ...samplings[i]!, outputKind: "finalOnly" as const } : samplings[i]!;
      const { text, tokenIds, cacheSalt } = this.#encoder.encode(prompt, { room: roomOf(engine.limits) });
      const badWordTokens = this.#encoder.badWordTokens(sampling.badWords);
      const id = String(this.#nextRequest++);
      const draft = {
        ...{ id, promptTokenIds: tokenIds, sampling, badWordTokens, cacheSalt, arrivalTime, logits, pooling },
        ...(sampling.structuredOutputs && this.#held(prompt, text ?? "", sampling.structuredOutputs)),
      };
      return { request: checkRequest(draft, engine.limits), prompt: text };
    });
    this.#loop.add(checked.map(({ request }) => request));
    return this.#open.open(checked, { abort: (ids) => this.#loop.abort(ids), signal });
  }

  /** The grammar of a reply, and the tokens that it asks for as such. */
  #held(prompt: Prompt | ChatPrompt, text: string, outputs: ResolvedOutputs) {
    this.#answers ??= new AnswerLimits(this.#encoder.chatTemplate?.source);
    if (!this.#answers.thinksBefore(prompt)) return { grammar: this.#grammars.grammarOf(outputs) };
    this.#tokens ??= new TokenTable(packTokens(this.#loaded.tokenizer!));
    const { shape, markers, param } = this.#answers.of(prompt, text, outputs, this.#tokens);
    return { grammar: this.#grammars.shapeGrammar(shape, param), markers };
  }
}

/** Counts what was generated and tells it after each delta. */
function progressReporter(
  requests: readonly SubmittedRequest[],
  onProgress: (progress: GenerateProgress) => void,
): (delta: CompletionDelta) => void {
  const unfinished = new Map(requests.map(({ id, sampling }) => [id, sampling.n]));
  const totalPrompts = requests.length;
  let finishedPrompts = 0;
  let outputTokens = 0;
  return ({ requestId, tokenIds, finishReason }) => {
    outputTokens += tokenIds.length;
    const left = unfinished.get(requestId)! - (finishReason === null ? 0 : 1);
    unfinished.set(requestId, left);
    if (left === 0) finishedPrompts++;
    onProgress({ finishedPrompts, totalPrompts, outputTokens });
  };
}

function isConversations(
  messages: readonly ChatMessage[] | readonly (readonly ChatMessage[])[],
): messages is readonly (readonly ChatMessage[])[] {
  return messages.length > 0 && messages.every((entry) => Array.isArray(entry));
}
