import type {
  CompletionDelta,
  FinishedRequest,
  GenerationStream,
  PositionLogprobs,
  RequestMetrics,
  SubmittedRequest,
} from "../base/outputs.ts";
import type { EngineRequest } from "../engine/request.ts";
import type { OwnedDelta, PromptProgress } from "../engine/step-output.ts";
import { DeltaQueue } from "./delta-queue.ts";

/** A request of a stream, as far as the engine has reported. */
export class StreamedRequest implements SubmittedRequest {
  numCachedTokens = 0;
  promptLogprobs: readonly (PositionLogprobs | null)[] | undefined;
  /** float32 [promptTokens, vocabSize], if they were asked for. */
  logits: Float32Array | undefined;
  embedding: Float32Array | undefined;
  metrics: RequestMetrics;
  isFinished = false;
  readonly request: EngineRequest;
  readonly prompt: string | undefined;
  readonly replica: number;
  #promptTokenIds: readonly number[] | undefined;

  constructor(
    { request, prompt, replica = 0 }: StreamedPrompt,
    /** Index of its first completion among all of the stream. */
    readonly firstChoice: number,
  ) {
    this.request = request;
    this.prompt = prompt;
    this.replica = replica;
    this.metrics = { arrivalTime: request.arrivalTime };
  }

  get id(): string {
    return this.request.id;
  }

  get sampling() {
    return this.request.sampling;
  }

  get numPromptTokens(): number {
    return this.request.promptTokenIds.length;
  }

  get promptTokenIds(): readonly number[] {
    this.#promptTokenIds ??= Array.from(this.request.promptTokenIds);
    return this.#promptTokenIds;
  }
}

/** A checked request and the text that it was encoded from. */
export interface StreamedPrompt {
  readonly request: EngineRequest;
  readonly prompt: string | undefined;
  /** Index of the engine that runs it, where there are several. Default 0. */
  readonly replica?: number;
}

export interface StreamOptions {
  /** Tells the engines to end these requests; called once at most. */
  readonly abort: (ids: readonly string[]) => void;
  /** Aborts the requests; listened to until they have ended. */
  readonly signal?: AbortSignal | undefined;
  /** Called once for each request, however it ends. */
  readonly onEnd?: ((request: StreamedRequest) => void) | undefined;
}

/**
 * The deltas of some requests between the engine and their reader. Those that the reader has not taken yet are merged into
 * one for each completion, so that a slow reader holds no more than the output itself.
 */
export class RequestStream implements GenerationStream, AsyncIterator<CompletionDelta, undefined> {
  readonly requests: readonly StreamedRequest[];
  readonly #options: StreamOptions;
  readonly #untaken = new DeltaQueue();
  #numUnfinished: number;
  #wake: PromiseWithResolvers<void> | undefined;
  #isAborted = false;
  #isAbandoned = false;
  #failure: Error | undefined;

  constructor(prompts: readonly StreamedPrompt[], options: StreamOptions) {
    let firstChoice = 0;
    this.requests = prompts.map((prompt) => {
      const streamed = new StreamedRequest(prompt, firstChoice);
      firstChoice += prompt.request.sampling.n;
      return streamed;
    });
    this.#numUnfinished = prompts.length;
    this.#options = options;
    if (options.signal?.aborted) this.abort();
    else if (prompts.length > 0) options.signal?.addEventListener("abort", this.abort);
  }

  readonly abort = (): void => {
    if (this.#isAborted) return;
    this.#isAborted = true;
    const unfinished = this.requests.filter(({ isFinished }) => !isFinished).map(({ id }) => id);
    if (unfinished.length > 0) this.#options.abort(unfinished);
  };

  progress(request: StreamedRequest, { id: _, ...progress }: PromptProgress): void {
    Object.assign(request, progress);
  }

  /** Takes a delta over from the engine. */
  push({ firstChoice, isFinished }: StreamedRequest, delta: OwnedDelta): void {
    if (this.#isAbandoned || isFinished) return;
    this.#untaken.push(firstChoice + delta.index, delta);
    this.#wakeReader();
  }

  /** All deltas of the request have come. */
  finish(request: StreamedRequest, { metrics }: FinishedRequest): void {
    if (request.isFinished) return;
    request.metrics = metrics;
    this.#end(request);
  }

  /**
   * No further delta comes; the reader is told so after those that it has not taken. What other engines still run of it is
   * aborted. Safe to call twice.
   */
  fail(reason: Error): void {
    this.#failure ??= reason;
    this.abort();
    for (const request of this.requests) if (!request.isFinished) this.#end(request);
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  async next(): Promise<IteratorResult<CompletionDelta, undefined>> {
    for (;;) {
      const delta = this.#untaken.take();
      if (delta) return { done: false, value: delta };
      if (this.#failure && !this.#isAbandoned) throw this.#failure;
      if (this.#isAbandoned || this.#numUnfinished === 0) return { done: true, value: undefined };
      this.#wake ??= Promise.withResolvers();
      await this.#wake.promise;
    }
  }

  async return(): Promise<IteratorResult<CompletionDelta, undefined>> {
    this.abort();
    this.#isAbandoned = true;
    this.#untaken.clear();
    this.#wakeReader();
    return { done: true, value: undefined };
  }

  #end(request: StreamedRequest): void {
    request.isFinished = true;
    this.#numUnfinished--;
    if (this.#numUnfinished === 0) this.#options.signal?.removeEventListener("abort", this.abort);
    this.#options.onEnd?.(request);
    this.#wakeReader();
  }

  #wakeReader(): void {
    this.#wake?.resolve();
    this.#wake = undefined;
  }
}
