import type { EngineConfig } from "../base/config.ts";
import type { EngineStats } from "../base/engine-stats.ts";
import type { EngineView } from "../base/engine-view.ts";
import { EngineDeadError } from "../base/errors.ts";
import type { FinishedRequest } from "../base/outputs.ts";
import type { PromptProgress } from "../engine/step-output.ts";
import type { LoadProgress } from "../llm/load-model.ts";
import { OpenRequests } from "../llm/open-requests.ts";
import type { RequestStream, StreamedRequest } from "../llm/request-stream.ts";
import { decodeError } from "../threads/error-codec.ts";
import { atMost, WorkerLink } from "../threads/worker-link.ts";
import { LogprobUnpacker } from "./logprob-codec.ts";
import { type PackedStep, unpackStep } from "./step-codec.ts";
import type { EngineInfo, EngineMessage, EngineReply, LoadMessage } from "./worker-protocol.ts";

/** One step of an engine, for metrics. */
export interface StepReport {
  /** Index of the replica. */
  readonly replica: number;
  readonly stats: EngineStats;
  /** Tokens of the batch that the step launched; 0 if it only took in results. */
  readonly numBatchedTokens: number;
  /** Requests that were begun with it, or have their first token from it. */
  readonly prompts: readonly PromptProgress[];
  /** Requests that ended with it. */
  readonly finished: readonly FinishedRequest[];
}

/** Callbacks while a model loads. */
export interface LoadListeners {
  readonly onProgress?: ((progress: LoadProgress) => void) | undefined;
  /** Called with the model's folder, or its GGUF file, once that is complete on disk. */
  readonly onFolder?: ((folder: string) => void) | undefined;
  /** Ends the loading with its reason. */
  readonly signal?: AbortSignal;
}

type EngineReport = Omit<StepReport, "replica">;
type EngineLink = WorkerLink<LoadMessage, EngineReply>;

/** Time that the worker has to free the device. */
const SHUTDOWN_MS = 5000;

/** The main thread's side of the engine worker. */
export class EngineClient {
  /** As of the latest step. */
  stats: EngineStats;
  /** The error that the engine died of, or the reason of its closing. */
  failure: EngineDeadError | undefined;
  /** Called once with the failure; what it returns is what the pending requests are told. */
  onDeath: (failure: EngineDeadError) => EngineDeadError = (failure) => failure;
  readonly #requests = new OpenRequests();
  readonly #listeners = new Set<(report: EngineReport) => void>();
  readonly #logprobs = new LogprobUnpacker();
  /** In the order of the questions. */
  readonly #prefixCacheResets: PromiseWithResolvers<boolean>[] = [];
  /** Likewise. */
  readonly #views: PromiseWithResolvers<EngineView>[] = [];
  readonly #closed = Promise.withResolvers<void>();
  #closing: Promise<void> | undefined;
  /** Milliseconds on this thread's clock. */
  #lastProgress = 0;

  /**
   * Loads a model in a new Worker.
   * @throws what `loadModel` or a listener throws; the Worker has ended then. EngineDeadError if it died meanwhile.
   */
  static async start(
    url: URL,
    message: { readonly model: string | undefined; readonly config: EngineConfig },
    { onProgress, onFolder, signal }: LoadListeners = {},
  ): Promise<EngineClient> {
    const link: EngineLink = new WorkerLink(url);
    const { port1: outbox, port2: inbox } = new MessageChannel();
    const loaded = Promise.withResolvers<Extract<EngineReply, { type: "ready" }>>();
    link.onEnd = (reason) => loaded.reject(workerDied(reason));
    link.onMessage = (reply) => {
      try {
        if (reply.type === "failed") loaded.reject(decodeError(reply.error));
        else if (reply.type === "ready") loaded.resolve(reply);
        else if (reply.type === "folder") onFolder?.(reply.folder);
        else if (reply.type === "progress") onProgress?.(reply.progress);
      } catch (error) {
        loaded.reject(error);
      }
    };
    const onAbort = () => loaded.reject(signal!.reason);
    signal?.addEventListener("abort", onAbort);
    if (signal?.aborted) onAbort();
    try {
      link.post({ ...message, inbox }, [inbox]);
      const { info, stats } = await loaded.promise;
      return new EngineClient(link, outbox, info, stats);
    } catch (error) {
      await link.terminate();
      throw error;
    } finally {
      signal?.removeEventListener("abort", onAbort);
    }
  }

  private constructor(
    private readonly link: EngineLink,
    private readonly outbox: MessagePort,
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

  get cacheConfig(): EngineInfo["cacheConfig"] {
    return this.info.cacheConfig;
  }

  /** Seconds since the last step while there are requests; 0 when there are none. */
  get secondsWithoutProgress(): number {
    return this.#requests.size === 0 ? 0 : (performance.now() - this.#lastProgress) / 1000;
  }

  /** This thread's time, in seconds, on the engine's clock. */
  engineTime(seconds: number): number {
    return (performance.timeOrigin - this.info.timeOrigin) / 1000 + seconds;
  }

  /**
   * Queues requests of a stream together.
   * @param isAborted nothing is computed, but they end like any other. @throws EngineDeadError
   */
  add(stream: RequestStream, streamed: readonly StreamedRequest[], isAborted: boolean): void {
    this.assertAlive();
    if (this.#requests.size === 0) this.#lastProgress = performance.now();
    // This thread keeps its own copies of the prompts.
    const requests = streamed.map(({ request }) => {
      return { ...request, promptTokenIds: request.promptTokenIds.slice() };
    });
    const transfer = requests.map(({ promptTokenIds }) => promptTokenIds.buffer);
    this.#post({ type: "add", requests, isAborted }, transfer);
    for (const request of streamed) this.#requests.watch(stream, request);
  }

  /** Ends requests early; no effect on those that have ended. */
  abort(ids: readonly string[]): void {
    this.#post({ type: "abort", ids });
  }

  /** False when requests are running. @throws EngineDeadError */
  async resetPrefixCache(): Promise<boolean> {
    return this.#ask(this.#prefixCacheResets, "resetPrefixCache");
  }

  /** Blocks and queues between two steps. @throws EngineDeadError */
  async view(): Promise<EngineView> {
    return this.#ask(this.#views, "view");
  }

  /** @returns a function that ends the calls. */
  onStep(listener: (report: EngineReport) => void): () => void {
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
    this.#post({ type: "shutdown" });
    await atMost(this.#closed.promise, SHUTDOWN_MS);
    this.outbox.close();
    await this.link.terminate();
  }

  #post(message: EngineMessage, transfer: ArrayBuffer[] = []): void {
    this.outbox.postMessage(message, transfer);
  }

  /** Asks what is answered in the order of the questions in `asked`. */
  #ask<T>(asked: PromiseWithResolvers<T>[], type: "resetPrefixCache" | "view"): Promise<T> {
    this.assertAlive();
    const answer = Promise.withResolvers<T>();
    asked.push(answer);
    this.#post({ type });
    return answer.promise;
  }

  #receive(reply: EngineReply): void {
    if (reply.type === "step") this.#step(reply.step, reply.stats);
    else if (reply.type === "closed") this.#closed.resolve();
    else if (reply.type === "prefixCacheReset") {
      this.stats = reply.stats;
      this.#prefixCacheResets.shift()?.resolve(reply.done);
    } else if (reply.type === "view") {
      this.#views.shift()?.resolve(reply.view);
    } else if (reply.type === "dead") {
      const cause = decodeError(reply.error);
      this.#die(cause instanceof EngineDeadError ? cause : new EngineDeadError(cause.message, { cause }));
    }
  }

  #step(packed: PackedStep, stats: EngineStats): void {
    this.stats = stats;
    this.#lastProgress = performance.now();
    const step = unpackStep(packed, this.#logprobs);
    this.#requests.deliver(step);
    const { numBatchedTokens, prompts, finished } = step;
    for (const listener of this.#listeners) listener({ stats, numBatchedTokens, prompts, finished });
  }

  #die(failure: EngineDeadError): void {
    if (this.failure) return;
    this.failure = failure;
    this.stats = { ...this.stats, running: 0, waiting: 0, kvUsage: 0, cachedBlocks: 0 };
    const told = this.onDeath(failure);
    for (const asked of [...this.#prefixCacheResets.splice(0), ...this.#views.splice(0)]) asked.reject(told);
    this.#requests.fail(told);
  }
}

function workerDied(reason: string): EngineDeadError {
  return new EngineDeadError(`the engine worker died: ${reason}`);
}
