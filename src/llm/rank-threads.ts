import { EngineDeadError } from "../base/errors.ts";
import { workerScript } from "../base/program-file.ts";
import type { WeightSummary } from "../base/weight-summary.ts";
import { Exchange } from "../ranks/exchange.ts";
import { RankGroup } from "../ranks/rank-group.ts";
import { allocateRankMemory } from "../ranks/rank-memory.ts";
import { StepRing } from "../ranks/step-ring.ts";
import type { ModelRunner } from "../runner/model-runner.ts";
import { TensorParallelRunner } from "../runner/tensor-parallel.ts";
import type { Runner } from "../runner/types.ts";
import { decodeError } from "../threads/error-codec.ts";
import { atMost, WorkerLink } from "../threads/worker-link.ts";
import type { LoadedPart, PartSource } from "./load-part.ts";
import type { RankMessage, RankReply } from "./rank-protocol.ts";

const RANK_WORKER = workerScript("src/llm/rank-worker.ts");
/** Time that ranks have to free their devices, in milliseconds; less where one has failed, which may be stuck. */
const SHUTDOWN_MS = 4000;
const FAILED_SHUTDOWN_MS = 1000;
/** Time that the reason of a rank's failure has to arrive once it is known that it failed. */
const REASON_MS = 1000;

type RankLink = WorkerLink<RankMessage, RankReply>;

/** Bytes of a rank's part. */
interface Progress {
  readonly loadedBytes: number;
  readonly totalBytes: number;
}

/** The ranks of a model that run in Workers, all but the leader, seen from the leader's thread. */
export class RankThreads {
  /** The leader's way to them. */
  readonly peers: Exchange;
  readonly #group: RankGroup;
  readonly #links: RankLink[] = [];
  /** Bytes of each rank's weights. */
  readonly #loaded: Promise<number[]>;
  /** Rejects with what a rank failed of. */
  readonly #failed = Promise.withResolvers<never>();
  /** By rank. */
  readonly #progress: (Progress | undefined)[];
  #isBuilding = false;
  #isDisposed = false;
  #failure: EngineDeadError | undefined;
  #onFailure: (reason: EngineDeadError) => void = () => {};

  /**
   * Starts the Workers, each of which loads its part.
   * @param onProgress called with the bytes of all ranks, the leader's included, once all have begun
   */
  constructor(
    source: Omit<PartSource, "shard">,
    size: number,
    private readonly onProgress: (loadedBytes: number, totalBytes: number) => void,
  ) {
    const memory = allocateRankMemory(size);
    this.#group = new RankGroup(memory, 0);
    this.peers = new Exchange(this.#group);
    this.#progress = Array(size).fill(undefined);
    this.#failed.promise.catch(() => {}); // Reported where somebody waits for ranks.
    const loaded: Promise<number>[] = [];
    for (let rank = 1; rank < size; rank++) {
      const link: RankLink = new WorkerLink(RANK_WORKER);
      this.#links.push(link);
      const { promise, resolve } = Promise.withResolvers<number>();
      loaded.push(promise);
      link.onMessage = (reply) => {
        if (reply.type === "loaded") resolve(reply.weightBytes);
        else if (reply.type === "progress") this.report(rank, reply);
        else this.#fail(rank, decodeError(reply.error));
      };
      link.onEnd = (reason) => {
        if (!this.#group.isClosed) this.#fail(rank, new EngineDeadError(`its thread ended: ${reason}`));
      };
      link.post({ type: "load", memory, source: { ...source, shard: { rank, size } } });
    }
    this.#loaded = Promise.race([Promise.all(loaded), this.#failed.promise]);
    this.#loaded.catch(() => {});
  }

  /** A rank has read more of its part. */
  report(rank: number, progress: Progress): void {
    this.#progress[rank] = progress;
    let [loadedBytes, totalBytes] = [0, 0];
    for (const part of this.#progress) {
      if (part === undefined) return;
      loadedBytes += part.loadedBytes;
      totalBytes += part.totalBytes;
    }
    this.onProgress(loadedBytes, totalBytes);
  }

  /**
   * Waits until all ranks have loaded, and makes the runner of all, the leader's part being `own`.
   * @returns it and the weights of all ranks
   * @throws what a rank failed of
   */
  async build(own: LoadedPart): Promise<{ readonly runner: Runner; readonly weights: WeightSummary }> {
    const bytes = (await this.#loaded).reduce((sum, part) => sum + part, own.weights.bytes);
    this.#isBuilding = true;
    for (const link of this.#links) link.post({ type: "build" });
    let runner: ModelRunner;
    try {
      runner = this.peers.starting(() => own.build(this.peers));
    } catch (error) {
      // While this thread waited for it, a rank could only leave a message, not the error itself.
      if (error instanceof EngineDeadError && this.#group.failure !== undefined)
        await atMost(this.#failed.promise, REASON_MS);
      throw error;
    }
    // From here on, whoever uses the model keeps the process alive.
    for (const link of this.#links) link.unref();
    return {
      runner: new TensorParallelRunner(runner, this.#group, new StepRing(this.#group)),
      weights: { ...own.weights, bytes },
    };
  }

  /** Calls `listener`, once, when a rank fails, even if nobody waits for it; at once if one has. */
  onFailure(listener: (reason: EngineDeadError) => void): void {
    if (this.#failure !== undefined) listener(this.#failure);
    else this.#onFailure = listener;
  }

  /**
   * Ends the ranks, and waits on this thread until none of them holds anything of its device or does anything with another's: who
   * comes next may capture on the same devices. That takes 4 s at most. Safe to call twice.
   */
  dispose(): void {
    if (this.#isDisposed) return;
    this.#isDisposed = true;
    this.#group.close();
    for (const link of this.#links) {
      if (!this.#isBuilding) link.post({ type: "end" });
      link.unref();
    }
    const limit = this.#group.isClosed ? SHUTDOWN_MS : FAILED_SHUTDOWN_MS;
    if (this.#group.awaitOthers(limit)) return;
    for (const link of this.#links) void link.terminate();
  }

  #fail(rank: number, error: Error): void {
    // Unless another failure is on record already, of which this one may be a consequence.
    this.#group.fail(error.message, rank);
    if (this.#failure !== undefined) return;
    const { message } = this.#group.failure ?? error;
    this.#failure = new EngineDeadError(message, { cause: error });
    this.#failed.reject(error instanceof EngineDeadError ? this.#failure : error);
    this.#onFailure(this.#failure);
  }
}
