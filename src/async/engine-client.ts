import type { EngineConfig } from "../base/config.ts";
import { EngineDeadError } from "../base/errors.ts";
import type { FinishReason, RequestMetrics } from "../base/outputs.ts";
import type { ResolvedSamplingParams } from "../base/sampling-params.ts";
import type { EngineStats } from "../engine/engine.ts";
import type { LoadProgress } from "../llm/load-model.ts";
import { decodeError } from "./error-codec.ts";
import { LogprobUnpacker } from "./logprob-codec.ts";
import { RequestStream } from "./request-stream.ts";
import { type MutableDelta, unpackDeltas } from "./step-codec.ts";
import { atMost, WorkerLink } from "./worker-link.ts";
import type { EngineInfo, EngineMessage, EngineReply, LoadMessage, StepMessage } from "./worker-protocol.ts";

/** Told after each engine step, for metrics. */
export interface StepReport {
  readonly stats: EngineStats;
  /** Tokens of the batch that the step launched; 0 if it only took in results. */
  readonly numBatchedTokens: number;
  /** Requests that ended with it. */
  readonly finished: readonly FinishedRequest[];
}

export interface FinishedRequest {
  readonly id: string;
  readonly finishReasons: readonly FinishReason[];
  readonly promptTokens: number;
  readonly cachedTokens: number;
  /** Of all completions. */
  readonly generationTokens: number;
  /** Of each completion. */
  readonly completionTokens: readonly number[];
  /** As asked for; undefined: what the context holds. */
  readonly maxTokens: number | undefined;
  readonly n: number;
  readonly metrics: RequestMetrics;
}

/** A validated request. */
export interface ClientRequest {
  readonly prompt: string | undefined;
  readonly promptTokenIds: readonly number[];
  readonly sampling: ResolvedSamplingParams;
  readonly badWordTokens: readonly (readonly number[])[];
  readonly cacheSalt: string | undefined;
  /** Seconds on the engine worker's clock. */
  readonly arrivalTime: number;
  readonly signal: AbortSignal | undefined;
  /** Called once, when it has ended, however it does. */
  readonly onEnd: () => void;
}

type EngineLink = WorkerLink<LoadMessage | EngineMessage, EngineReply>;

/** How long the worker may take to free the device. */
const SHUTDOWN_MS = 5000;

/** The main thread's side of the engine worker: hands each request its deltas. */
export class EngineClient {
  /** As of the latest step. */
  stats: EngineStats;
  /** What the engine died of, or that it was closed. */
  failure: EngineDeadError | undefined;
  readonly #streams = new Map<number, RequestStream>();
  readonly #listeners = new Set<(report: StepReport) => void>();
  readonly #logprobs = new LogprobUnpacker();
  /** In the order of the questions. */
  readonly #prefixCacheResets: PromiseWithResolvers<boolean>[] = [];
  readonly #closed = Promise.withResolvers<void>();
  #closing: Promise<void> | undefined;
  #nextRequest = 0;
  /** Milliseconds on this thread's clock. */
  #lastProgress = 0;

  /**
   * Loads a model in a new Worker.
   * @throws what `loadModel` or `onProgress` throws; the Worker has ended then. EngineDeadError if it died meanwhile.
   */
  static async start(
    url: URL,
    message: { readonly model: string | undefined; readonly config: EngineConfig },
    onProgress?: (progress: LoadProgress) => void,
  ): Promise<EngineClient> {
    const link: EngineLink = new WorkerLink(url);
    const loaded = Promise.withResolvers<Extract<EngineReply, { type: "ready" }>>();
    link.onEnd = (reason) => loaded.reject(workerDied(reason));
    link.onMessage = (reply) => {
      if (reply.type === "failed") loaded.reject(decodeError(reply.error));
      else if (reply.type === "ready") loaded.resolve(reply);
      else if (reply.type === "progress") {
        try {
          onProgress?.(reply.progress);
        } catch (error) {
          loaded.reject(error);
        }
      }
    };
    try {
      link.post(message);
      const { info, stats } = await loaded.promise;
      return new EngineClient(link, info, stats);
    } catch (error) {
      await link.terminate();
      throw error;
    }
  }

  private constructor(
    private readonly link: EngineLink,
    readonly info: EngineInfo,
    stats: EngineStats,
  ) {
    this.stats = stats;
    link.onMessage = (reply) => this.#receive(reply);
    link.onEnd = (reason) => {
      this.#die(workerDied(reason));
      this.#closed.resolve();
    };
  }

  /** Seconds since the last step while there are requests; 0 when there are none. */
  get secondsWithoutProgress(): number {
    return this.#streams.size === 0 ? 0 : (performance.now() - this.#lastProgress) / 1000;
  }

  /** @throws EngineDeadError */
  add(request: ClientRequest): RequestStream {
    this.assertAlive();
    const { prompt, promptTokenIds, sampling, badWordTokens, cacheSalt, arrivalTime } = request;
    const { signal, onEnd } = request;
    const number = this.#nextRequest++;
    this.link.post({
      ...{ type: "add", request: number, promptTokenIds, sampling, badWordTokens, cacheSalt, arrivalTime },
      aborted: signal?.aborted === true,
    });
    const abort = () => this.link.post({ type: "abort", request: number });
    const stream = new RequestStream({
      ...{ id: requestId(number), prompt, promptTokenIds, sampling, metrics: { arrivalTime } },
      ...{ abort, signal, onEnd },
    });
    if (this.#streams.size === 0) this.#lastProgress = performance.now();
    this.#streams.set(number, stream);
    return stream;
  }

  /** False when requests are running. @throws EngineDeadError */
  async resetPrefixCache(): Promise<boolean> {
    this.assertAlive();
    const reset = Promise.withResolvers<boolean>();
    this.#prefixCacheResets.push(reset);
    this.link.post({ type: "resetPrefixCache" });
    return reset.promise;
  }

  /** @returns what ends the calls. */
  onStep(listener: (report: StepReport) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  assertAlive(): void {
    if (this.failure) throw new EngineDeadError(this.failure.message, { cause: this.failure });
  }

  /** Ends everything with `reason`, lets the worker free the device, for 5 s at most, and ends it. Safe to call twice. */
  close(reason: EngineDeadError): Promise<void> {
    this.#closing ??= this.#close(reason);
    return this.#closing;
  }

  async #close(reason: EngineDeadError): Promise<void> {
    this.#die(reason);
    this.link.post({ type: "shutdown" });
    await atMost(this.#closed.promise, SHUTDOWN_MS);
    await this.link.terminate();
  }

  #receive(reply: EngineReply): void {
    if (reply.type === "step") this.#step(reply);
    else if (reply.type === "closed") this.#closed.resolve();
    else if (reply.type === "refused") {
      this.#take(reply.request)?.end(decodeError(reply.error));
    } else if (reply.type === "prefixCacheReset") {
      this.stats = reply.stats;
      this.#prefixCacheResets.shift()?.resolve(reply.done);
    } else if (reply.type === "dead") {
      const cause = decodeError(reply.error);
      this.#die(cause instanceof EngineDeadError ? cause : new EngineDeadError(cause.message, { cause }));
    }
  }

  #step({ deltas, scheduled, started, finished, stats, numBatchedTokens }: StepMessage): void {
    this.stats = stats;
    this.#lastProgress = performance.now();
    for (const { request, metrics } of scheduled) {
      const stream = this.#streams.get(request);
      if (stream) stream.metrics = metrics;
    }
    for (const { request, promptLogprobs, ...known } of started) {
      const positions = promptLogprobs && this.#logprobs.unpack(promptLogprobs);
      this.#streams.get(request)?.start({ ...known, promptLogprobs: positions });
    }
    const push = (request: number, delta: MutableDelta) => this.#streams.get(request)?.push(delta);
    unpackDeltas(deltas, requestId, this.#logprobs, push);
    const ended: FinishedRequest[] = [];
    for (const { request, metrics } of finished) {
      const stream = this.#take(request);
      if (!stream) continue;
      stream.finish(metrics);
      ended.push(finishedRequest(stream));
    }
    for (const listener of this.#listeners) listener({ stats, numBatchedTokens, finished: ended });
  }

  #take(request: number): RequestStream | undefined {
    const stream = this.#streams.get(request);
    this.#streams.delete(request);
    return stream;
  }

  #die(failure: EngineDeadError): void {
    this.failure ??= failure;
    for (const reset of this.#prefixCacheResets.splice(0)) reset.reject(this.failure);
    const streams = [...this.#streams.values()];
    this.#streams.clear();
    for (const stream of streams) stream.end(this.failure);
  }
}

function requestId(request: number): string {
  return `request-${request}`;
}

function workerDied(reason: string): EngineDeadError {
  return new EngineDeadError(`the engine worker died: ${reason}`);
}

function finishedRequest(stream: RequestStream): FinishedRequest {
  const { id, promptTokenIds, sampling, numCachedTokens, completionTokens, metrics } = stream;
  const generationTokens = completionTokens.reduce((total, count) => total + count, 0);
  return {
    ...{ id, finishReasons: stream.finishReasons as FinishReason[], promptTokens: promptTokenIds.length },
    ...{ cachedTokens: numCachedTokens, generationTokens, completionTokens },
    ...{ maxTokens: sampling.maxTokens, n: sampling.n, metrics },
  };
}
