import type { Backend } from "../backend/backend.ts";
import { messageOf } from "../base/errors.ts";
import { Exchange } from "../ranks/exchange.ts";
import { RankGroup } from "../ranks/rank-group.ts";
import { StepRing } from "../ranks/step-ring.ts";
import { Follower } from "../runner/tensor-parallel.ts";
import { encodeError } from "../threads/error-codec.ts";
import { type LoadedPart, loadPart } from "./load-part.ts";
import { createBackend } from "./open-backend.ts";
import type { RankMessage, RankReply } from "./rank-protocol.ts";

declare const self: Worker;

/** A rank other than the leader: loads its part, and makes the leader's calls until the group ends. */
class RankThread {
  readonly #group: RankGroup;
  readonly #exchange: Exchange;
  readonly #loading: Promise<LoadedPart>;
  #backend: Backend | undefined;

  constructor(message: Extract<RankMessage, { type: "load" }>) {
    this.#group = new RankGroup(message.memory, message.source.shard.rank);
    this.#exchange = new Exchange(this.#group);
    // However this thread ends: the others must not wait for it, nor its device for them.
    process.on("exit", (code) => {
      this.#group.fail(`its thread ended with code ${code}`);
      try {
        this.#backend?.leaveRanks?.();
      } catch {
        // The process ends soon.
      }
      this.#group.leave();
    });
    this.#loading = this.#load(message.source);
    this.#loading.then(
      ({ weights }) => post({ type: "loaded", weightBytes: weights.bytes }),
      (error) => this.#end(error),
    );
  }

  async follow(): Promise<void> {
    try {
      const part = await this.#loading;
      const runner = this.#exchange.starting(() => part.build(this.#exchange));
      new Follower(runner, this.#group, new StepRing(this.#group)).follow();
      runner.dispose();
    } catch (error) {
      this.#end(error);
    }
    this.#free();
  }

  /** Ends without having built anything. */
  async leave(): Promise<void> {
    // What failed has been reported.
    await this.#loading.catch(() => {});
    this.#free();
  }

  #free(): never {
    try {
      this.#backend?.dispose();
    } catch (error) {
      this.#end(error);
    }
    process.exit(0);
  }

  async #load(source: Extract<RankMessage, { type: "load" }>["source"]): Promise<LoadedPart> {
    this.#backend = await createBackend(source.config, source.modelConfig, this.#exchange);
    return loadPart(source, this.#backend, (loadedBytes, totalBytes) => {
      // Where another has failed, the rest need not be read.
      this.#group.assertAlive();
      post({ type: "progress", loadedBytes, totalBytes });
    });
  }

  #end(error: unknown): void {
    this.#group.fail(messageOf(error));
    post({ type: "failed", error: encodeError(error) });
  }
}

function post(reply: RankReply): void {
  self.postMessage(reply);
}

let thread: RankThread | undefined;
self.onmessage = ({ data }: MessageEvent<RankMessage>) => {
  if (data.type === "load") thread = new RankThread(data);
  else void (data.type === "build" ? thread!.follow() : thread!.leave());
};
