import { EngineDeadError, messageOf } from "../base/errors.ts";
import type { CompletionDelta } from "../base/outputs.ts";
import type { Engine } from "../engine/engine.ts";
import { encodeError } from "./error-codec.ts";
import { LogprobPacker } from "./logprob-codec.ts";
import { packDeltas } from "./step-codec.ts";
import type { AddMessage, EngineReply, StartedRequest, StepMessage } from "./worker-protocol.ts";

/** A request with deltas to come. */
interface OpenRequest {
  unfinished: number;
  started: boolean;
}

/**
 * The worker's side of the engine: steps it as long as it has work and posts what each step brought as one message.
 * Messages are taken in between steps; with overlap the device has its next step by then.
 */
export class EngineLoop {
  readonly #open = new Map<number, OpenRequest>();
  readonly #logprobs = new LogprobPacker();
  #stepping = false;
  #stopped = false;

  constructor(
    private readonly engine: Engine,
    private readonly post: (reply: EngineReply, transfer?: ArrayBuffer[]) => void,
  ) {}

  add({ request, cacheSalt, aborted, ...rest }: AddMessage): void {
    try {
      this.engine.add({
        ...{ id: String(request), ...rest },
        ...(cacheSalt !== undefined && { cacheSalt }),
      });
    } catch (error) {
      this.post({ type: "refused", request, error: encodeError(error) });
      return;
    }
    this.#open.set(request, { unfinished: rest.sampling.n, started: false });
    if (aborted) this.engine.abort(String(request));
    void this.#run();
  }

  abort(request: number): void {
    this.engine.abort(String(request));
    void this.#run();
  }

  resetPrefixCache(): void {
    const done = this.engine.resetPrefixCache();
    this.post({ type: "prefixCacheReset", done, stats: this.engine.stats() });
  }

  /** No step begins after this. */
  stop(): void {
    this.#stopped = true;
  }

  async #run(): Promise<void> {
    if (this.#stepping) return;
    this.#stepping = true;
    try {
      for (;;) {
        await eventLoopTurn();
        if (this.#stopped || !this.engine.hasUnfinished) break;
        this.#report(this.engine.step());
        if (this.engine.failure) throw this.engine.failure;
      }
    } catch (error) {
      this.#stopped = true;
      const dead = error instanceof EngineDeadError ? error : engineFailed(error);
      this.post({ type: "dead", error: encodeError(dead) });
    } finally {
      this.#stepping = false;
    }
  }

  #report(deltas: readonly CompletionDelta[]): void {
    // What ended with the engine hears of it from the `dead` message.
    const alive = this.engine.failure ? deltas.filter((delta) => delta.error === undefined) : deltas;
    const scheduled = this.engine.firstScheduled.map((id) => ({
      request: Number(id),
      metrics: this.engine.result(id).metrics,
    }));
    const started: StartedRequest[] = [];
    const finished: StepMessage["finished"][number][] = [];
    for (const { requestId, finishReason } of alive) {
      const request = Number(requestId);
      const open = this.#open.get(request)!;
      if (finishReason !== null) open.unfinished--;
      if (open.started && open.unfinished > 0) continue;
      const { numCachedTokens, promptLogprobs: positions, metrics } = this.engine.result(requestId);
      if (!open.started) {
        const promptLogprobs = positions && this.#logprobs.pack(positions);
        started.push({ request, numCachedTokens, promptLogprobs, metrics });
      }
      open.started = true;
      if (open.unfinished > 0) continue;
      finished.push({ request, metrics });
      this.#open.delete(request);
      this.engine.release(requestId);
    }
    const packed = packDeltas(alive, Number, this.#logprobs);
    const stats = this.engine.stats();
    const { numBatchedTokens } = this.engine;
    this.post({ type: "step", deltas: packed, scheduled, started, finished, stats, numBatchedTokens }, [
      packed.words.buffer,
    ]);
  }
}

function engineFailed(cause: unknown): EngineDeadError {
  return new EngineDeadError(`the engine failed: ${messageOf(cause)}`, { cause });
}

/** Lets all messages in that have arrived: about a microsecond when there is none. */
function eventLoopTurn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
