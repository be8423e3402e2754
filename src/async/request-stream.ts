import type { CompletionDelta, FinishReason, PositionLogprobs, RequestMetrics } from "../base/outputs.ts";
import type { ResolvedSamplingParams } from "../base/sampling-params.ts";
import type { MutableDelta } from "./step-codec.ts";

/** One request under way. Iterate it once: deltas of all its completions in order; ends after each has its terminal delta. */
export interface GenerationStream extends AsyncIterable<CompletionDelta> {
  /** Internal, never the caller's. */
  readonly id: string;
  /** The prompt's text, conversations rendered; undefined for token ids. */
  readonly prompt: string | undefined;
  readonly promptTokenIds: readonly number[];
  readonly sampling: ResolvedSamplingParams;
  /** Valid from the first delta on. */
  readonly numCachedTokens: number;
  /** Valid from the first delta on; undefined unless asked for. */
  readonly promptLogprobs: readonly (PositionLogprobs | null)[] | undefined;
  /**
   * In seconds on the engine worker's `performance.now()`. `firstScheduledTime` is known after the step that began the
   * prompt, or with overlap as soon as that is launched; the rest with the first and the last delta.
   */
  readonly metrics: RequestMetrics;
  /** Ends the request; its completions finish with "abort". Safe at any time. */
  abort(): void;
}

/** What a stream is made from. */
export interface StreamInit
  extends Pick<GenerationStream, "id" | "prompt" | "promptTokenIds" | "sampling" | "metrics"> {
  /** Tells the engine to end the request. */
  readonly abort: () => void;
  readonly signal: AbortSignal | undefined;
  /** Called once, when no further delta comes. */
  readonly onEnd: () => void;
}

/**
 * The deltas of one request between the engine and its reader. What the reader has not taken yet is one delta for each
 * completion, so that a slow reader holds no more than the output itself. Leaving the loop aborts the request.
 */
export class RequestStream implements GenerationStream, AsyncIterator<CompletionDelta, undefined> {
  readonly id: string;
  readonly prompt: string | undefined;
  readonly promptTokenIds: readonly number[];
  readonly sampling: ResolvedSamplingParams;
  numCachedTokens = 0;
  promptLogprobs: readonly (PositionLogprobs | null)[] | undefined;
  metrics: RequestMetrics;
  /** Tokens generated so far, by completion. */
  readonly completionTokens: number[];
  /** By completion; undefined while it runs. */
  readonly finishReasons: (FinishReason | undefined)[];
  readonly #init: StreamInit;
  /** By completion, those that have waited longest first. */
  readonly #untaken = new Map<number, MutableDelta>();
  #wake: PromiseWithResolvers<void> | undefined;
  #ended = false;
  #abandoned = false;
  #failure: Error | undefined;

  constructor(init: StreamInit) {
    this.#init = init;
    this.id = init.id;
    this.prompt = init.prompt;
    this.promptTokenIds = init.promptTokenIds;
    this.sampling = init.sampling;
    this.metrics = init.metrics;
    this.completionTokens = new Array(init.sampling.n).fill(0);
    this.finishReasons = new Array(init.sampling.n).fill(undefined);
    if (init.signal?.aborted) this.abort();
    else init.signal?.addEventListener("abort", this.abort);
  }

  readonly abort = (): void => {
    if (!this.#ended) this.#init.abort();
  };

  /** What is known with the first delta. */
  start(known: Pick<GenerationStream, "numCachedTokens" | "promptLogprobs" | "metrics">): void {
    Object.assign(this, known);
  }

  /** Takes a delta over from the engine. */
  push(delta: MutableDelta): void {
    this.completionTokens[delta.index]! += delta.tokenIds.length;
    if (delta.finishReason !== null) this.finishReasons[delta.index] = delta.finishReason;
    if (this.#abandoned) return;
    const untaken = this.#untaken.get(delta.index);
    if (untaken) merge(untaken, delta);
    else this.#untaken.set(delta.index, delta);
    this.#wakeReader();
  }

  /** All deltas have come. */
  finish(metrics: RequestMetrics): void {
    this.metrics = metrics;
    this.end();
  }

  /** No further delta comes; with `failure` the reader is told so after those it has not taken. */
  end(failure?: Error): void {
    this.#ended = true;
    this.#failure = failure;
    this.#init.signal?.removeEventListener("abort", this.abort);
    this.#init.onEnd();
    this.#wakeReader();
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  async next(): Promise<IteratorResult<CompletionDelta, undefined>> {
    for (;;) {
      for (const [index, delta] of this.#untaken) {
        this.#untaken.delete(index);
        return { done: false, value: delta };
      }
      if (this.#abandoned) break;
      if (this.#failure) throw this.#failure;
      if (this.#ended) break;
      this.#wake ??= Promise.withResolvers();
      await this.#wake.promise;
    }
    return { done: true, value: undefined };
  }

  async return(): Promise<IteratorResult<CompletionDelta, undefined>> {
    this.abort();
    this.#abandoned = true;
    this.#untaken.clear();
    this.#wakeReader();
    return { done: true, value: undefined };
  }

  #wakeReader(): void {
    this.#wake?.resolve();
    this.#wake = undefined;
  }
}

/** Appends the delta that follows. */
function merge(into: MutableDelta, { text, tokenIds, logprobs, ...end }: MutableDelta): void {
  into.text += text;
  for (const token of tokenIds) into.tokenIds.push(token);
  if (logprobs) {
    into.logprobs ??= [];
    for (const position of logprobs) into.logprobs.push(position);
  }
  Object.assign(into, end);
}
