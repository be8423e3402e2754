import { type EngineConfig, type EngineOptions, resolveEngineConfig } from "../base/config.ts";
import type { FloatDType } from "../base/dtype.ts";
import { EngineDeadError, InvalidRequestError } from "../base/errors.ts";
import type { CompletionDelta, RequestOutput } from "../base/outputs.ts";
import type { SamplingParams } from "../base/sampling-params.ts";
import type { EngineRequest } from "../engine/request.ts";
import type { ModelConfig } from "../models/config.ts";
import type { ChatMessage } from "../tokenizer/chat-template.ts";
import {
  type ChatOptions,
  type ChatPrompt,
  type Prompt,
  PromptEncoder,
} from "../tokenizer/prompt-encoder.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { type LoadedModel, type LoadProgress, loadModel } from "./load-model.ts";
import { RequestBuilder } from "./request-builder.ts";
import { type RequestHandle, RequestQueue } from "./request-queue.ts";

export interface CreateOptions extends EngineOptions {
  /** Told how downloading and loading go on. */
  onProgress?: (progress: LoadProgress) => void;
}

export interface GenerateOptions {
  /** Ends the requests early; their outputs then have finishReason "abort". */
  signal?: AbortSignal;
  /** Called after each step with what was generated so far. */
  onProgress?: (progress: GenerateProgress) => void;
}

export interface GenerateProgress {
  readonly finishedPrompts: number;
  readonly totalPrompts: number;
  readonly outputTokens: number;
}

export interface ChatGenerateOptions extends GenerateOptions, ChatOptions {}

/**
 * A model and its engine, in this thread. Requests of all calls share one batch, so `generate`, `chat` and `stream` may
 * run at the same time. Outputs come in the order of the prompts.
 */
export class LLM {
  readonly #loaded: LoadedModel;
  readonly #queue: RequestQueue;
  readonly #encoder: PromptEncoder;
  readonly #builder: RequestBuilder;
  #nextRequest = 0;

  private constructor(
    loaded: LoadedModel,
    /** The options this model was created with, defaults filled in. */
    readonly config: EngineConfig,
  ) {
    this.#loaded = loaded;
    this.#queue = new RequestQueue(loaded.engine);
    this.#encoder = new PromptEncoder(loaded.tokenizer, loaded.chatTemplate);
    this.#builder = new RequestBuilder(this.#encoder, {
      vocabSize: loaded.modelConfig.vocabSize,
      maxLogprobs: config.maxLogprobs,
      defaults: loaded.defaultSampling,
      hasTokenizer: loaded.tokenizer !== undefined,
    });
  }

  /**
   * Loads a model.
   * @param model a folder, a Hugging Face id such as `Qwen/Qwen3-0.6B`, or nothing for the embedded model.
   * @throws ConfigError, ModelNotFoundError, ModelDataError, DownloadError or DeviceError.
   */
  static async create(model?: string, options: CreateOptions = {}): Promise<LLM> {
    const { onProgress, ...engineOptions } = options;
    const config = resolveEngineConfig(engineOptions);
    return new LLM(await loadModel(model, config, onProgress), config);
  }

  /** Name or folder of the model. */
  get model(): string {
    return this.#loaded.name;
  }

  get modelConfig(): ModelConfig {
    return this.#loaded.modelConfig;
  }

  /** Prompt plus output tokens that one sequence can have. */
  get maxModelLen(): number {
    return this.#loaded.maxModelLen;
  }

  /** Where the model runs. */
  get device(): "cpu" | "cuda" {
    return this.#loaded.device;
  }

  /** What the model computes in. */
  get dtype(): FloatDType {
    return this.#loaded.dtype;
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
    const list = isList(prompts) ? prompts : [prompts];
    const paramsOf = perPrompt(params, list.length);
    return this.#run(
      list.map((prompt, i) => this.#request(prompt, paramsOf(i))),
      options,
    );
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
    const paramsOf = perPrompt(params, conversations.length);
    const requests = conversations.map((conversation, i) =>
      this.#request({ messages: conversation, chat: options }, paramsOf(i)),
    );
    return this.#run(requests, options);
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
    yield* this.#stream(this.#request(prompt, params), options.signal);
  }

  /** The same for a conversation. */
  async *streamChat(
    messages: readonly ChatMessage[],
    params: SamplingParams = {},
    options: ChatOptions & { signal?: AbortSignal } = {},
  ): AsyncGenerator<CompletionDelta, void, undefined> {
    yield* this.#stream(this.#request({ messages, chat: options }, params), options.signal);
  }

  /**
   * Logits float32 [tokens, vocabSize] of a prompt, row by row: row i predicts token i + 1.
   * @throws ContextLengthError for more than 2^30 of them; RequestFailedError; otherwise as `generate`.
   */
  async logits(promptTokenIds: readonly number[]): Promise<Float32Array> {
    const request = this.#builder.build(this.#newId(), { promptTokenIds }, {}, now(), { logits: true });
    const [output] = await this.#run([request], {}, (id) => this.#loaded.engine.logits(id));
    return output!;
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
    this.#queue.close(new EngineDeadError("the LLM was disposed of"));
    this.#loaded.dispose();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.dispose();
  }

  #request(prompt: Prompt | ChatPrompt, params: SamplingParams): EngineRequest {
    return this.#builder.build(this.#newId(), prompt, params, now());
  }

  #run(requests: readonly EngineRequest[], options: GenerateOptions): Promise<RequestOutput[]>;
  #run<T>(
    requests: readonly EngineRequest[],
    options: GenerateOptions,
    take: (id: string) => T,
  ): Promise<T[]>;
  async #run<T>(
    requests: readonly EngineRequest[],
    { signal, onProgress }: GenerateOptions,
    take?: (id: string) => T,
  ): Promise<(RequestOutput | T)[]> {
    const engine = this.#loaded.engine;
    let finishedPrompts = 0;
    let outputTokens = 0;
    const handles = this.#queue.addAll(requests, signal);
    const totalPrompts = requests.length;
    const outputs = handles.map(async (handle) => {
      try {
        for await (const delta of handle) {
          outputTokens += delta.tokenIds.length;
          onProgress?.({ finishedPrompts, totalPrompts, outputTokens });
        }
        finishedPrompts++;
        onProgress?.({ finishedPrompts, totalPrompts, outputTokens });
        return take ? take(handle.id) : engine.result(handle.id);
      } finally {
        this.#forget(handle);
      }
    });
    try {
      return await Promise.all(outputs);
    } catch (error) {
      // Nobody gets the other outputs any more.
      for (const handle of handles) handle.abort();
      throw error;
    }
  }

  async *#stream(
    request: EngineRequest,
    signal: AbortSignal | undefined,
  ): AsyncGenerator<CompletionDelta, void, undefined> {
    const engine = this.#loaded.engine;
    const kind = request.sampling.outputKind ?? "delta";
    const [handle] = this.#queue.addAll([request], signal);
    try {
      for await (const delta of handle!) {
        if (kind === "delta") yield delta;
        else if (kind === "cumulative" || delta.finishReason !== null) {
          const { text, tokenIds, logprobs } = engine.result(request.id).outputs[delta.index]!;
          yield { ...delta, text, tokenIds, ...(logprobs && { logprobs }) };
        }
      }
    } finally {
      this.#forget(handle!);
    }
  }

  /** Ends a request if it still runs. A dead engine keeps its requests. */
  #forget(handle: RequestHandle): void {
    handle.abort();
    if (!handle.failed) this.#loaded.engine.release(handle.id);
  }

  #newId(): string {
    return `request-${this.#nextRequest++}`;
  }
}

function now(): number {
  return performance.now() / 1000;
}

function isList<T>(value: T | readonly T[]): value is readonly T[] {
  return Array.isArray(value);
}

function isConversations(
  messages: readonly ChatMessage[] | readonly (readonly ChatMessage[])[],
): messages is readonly (readonly ChatMessage[])[] {
  return messages.length > 0 && messages.every((entry) => Array.isArray(entry));
}

function perPrompt(params: SamplingParams | readonly SamplingParams[], count: number) {
  if (!isList<SamplingParams>(params)) return () => params;
  if (params.length !== count)
    throw new InvalidRequestError("params", `${params.length} sampling parameters for ${count} prompts`);
  return (i: number) => params[i]!;
}
