import { EngineDeadError } from "../base/errors.ts";
import type { CompletionDelta } from "../base/outputs.ts";
import type { Engine } from "../engine/engine.ts";
import type { EngineRequest } from "../engine/request.ts";

/**
 * Steps an engine as long as it has work and hands each request its deltas. Between steps the event loop runs, so
 * requests can be added and aborted at any time.
 */
export class RequestQueue {
  readonly #handles = new Map<string, RequestHandle>();
  #stepping = false;
  #closed: EngineDeadError | undefined;

  constructor(private readonly engine: Engine) {}

  /** Adds all requests or, if one is refused, none. */
  addAll(requests: readonly EngineRequest[], signal?: AbortSignal): RequestHandle[] {
    if (this.#closed) throw this.#closed;
    const handles: RequestHandle[] = [];
    try {
      for (const request of requests) {
        this.engine.add(request);
        const abort = () => this.engine.abort(request.id);
        handles.push(new RequestHandle(request.id, request.sampling.n, abort, signal));
      }
    } catch (error) {
      for (const { id } of handles) {
        this.engine.abort(id);
        this.engine.release(id);
      }
      throw error;
    }
    for (const handle of handles) {
      this.#handles.set(handle.id, handle);
      if (signal?.aborted) handle.abort();
      else signal?.addEventListener("abort", handle.abort);
    }
    if (!this.#stepping) void this.#stepAll();
    return handles;
  }

  /** Fails all unfinished requests and everything added later. */
  close(reason: EngineDeadError): void {
    this.#closed ??= reason;
    for (const handle of this.#handles.values()) handle.fail(this.#closed);
    this.#handles.clear();
  }

  async #stepAll(): Promise<void> {
    this.#stepping = true;
    try {
      // The caller's `for await` must be able to subscribe, and to abort, before the first step.
      await eventLoopTurn();
      while (this.#closed === undefined && this.engine.hasUnfinished) {
        for (const delta of this.engine.step()) this.#deliver(delta);
        await eventLoopTurn();
      }
    } catch (cause) {
      this.close(
        cause instanceof EngineDeadError ? cause : new EngineDeadError("the engine failed", { cause }),
      );
    } finally {
      this.#stepping = false;
    }
  }

  #deliver(delta: CompletionDelta): void {
    const handle = this.#handles.get(delta.requestId);
    handle?.push(delta);
    if (handle?.finished) this.#handles.delete(delta.requestId);
  }
}

/** The deltas of one request, in order. Iterate it once. */
export class RequestHandle implements AsyncIterable<CompletionDelta> {
  readonly #deltas: CompletionDelta[] = [];
  #unfinished: number;
  #failure: EngineDeadError | undefined;
  #wake: (() => void) | undefined;

  constructor(
    readonly id: string,
    completions: number,
    private readonly abortRequest: () => void,
    /** Listened to until the request ends. */
    private readonly signal: AbortSignal | undefined,
  ) {
    this.#unfinished = completions;
  }

  /** Every completion has got its last delta. */
  get finished(): boolean {
    return this.#unfinished === 0;
  }

  /** The engine died before the request ended. */
  get failed(): boolean {
    return this.#failure !== undefined;
  }

  /** Ends the request; its completions finish with "abort". Does nothing when they have finished. */
  readonly abort = (): void => {
    if (!this.finished && !this.failed) this.abortRequest();
  };

  push(delta: CompletionDelta): void {
    this.#deltas.push(delta);
    if (delta.finishReason !== null) this.#unfinished--;
    if (this.finished) this.signal?.removeEventListener("abort", this.abort);
    this.#wake?.();
  }

  fail(reason: EngineDeadError): void {
    this.#failure ??= reason;
    this.signal?.removeEventListener("abort", this.abort);
    this.#wake?.();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<CompletionDelta, void, undefined> {
    for (;;) {
      const delta = this.#deltas.shift();
      if (delta !== undefined) yield delta;
      else if (this.#failure) throw this.#failure;
      else if (this.finished) return;
      else {
        await new Promise<void>((resolve) => {
          this.#wake = resolve;
        });
        this.#wake = undefined;
      }
    }
  }
}

function eventLoopTurn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
