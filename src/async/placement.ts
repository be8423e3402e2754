import { invariant } from "../base/errors.ts";
import type { EngineRequest } from "../engine/request.ts";
import { blockKeys, KnownPrefixes } from "./known-prefixes.ts";

/** The parts of a request that decide where it runs. */
export type PlacedRequest = Pick<EngineRequest, "promptTokenIds" | "cacheSalt" | "maxTokens"> & {
  readonly sampling: Pick<EngineRequest["sampling"], "n">;
};

/** The replica that a request was given to. */
export interface Place {
  readonly replica: number;
  /** The request has ended. Safe to call twice. */
  readonly release: () => void;
}

/** Tokens that a completion counts as at most: clients allow more than they get. */
const MAX_EXPECTED_TOKENS = 1024;

class ReplicaLoad {
  /** Tokens of its unfinished requests, each as expected when it was placed. */
  tokens = 0;
  /** The turn in which it was last chosen. */
  turn = 0;

  constructor(readonly known: KnownPrefixes) {}
}

/**
 * Chooses the replica for each request: the one with the least to compute before the request is done, in tokens. That is
 *
 *     tokens of its unfinished requests + prompt tokens that its prefix cache lacks + tokens that the cache has to give up.
 *
 * So a request goes where its prefix is cached, unless that replica is ahead of another by more than the prefix saves. Once a
 * popular prefix has been sent to a second replica, it is known there too, and load alone decides between the two. The last
 * term sends unrelated prompts to a cache that still has room. Among equals the least recently chosen comes first. Neither
 * term exceeds the prompt, so no replica is chosen that is ahead of another by more than twice the prompt's length.
 *
 * Weighing the queue against the prefix, rather than keeping to either, is what Preble (Srivatsa et al. 2024, "E2", which also
 * charges for what is evicted) and Mooncake (Qin et al. 2024, the instance with the least estimated time to first token) do
 * among servers. Placing all of a prefix where its hash says, with bounded loads (Mirrokni et al. 2018), needs no memory of
 * what was sent where; but it divides requests by a first part of fixed length, where chats that share a system prompt differ
 * after it.
 */
export class Placement {
  readonly #replicas: readonly ReplicaLoad[];
  #turn = 0;

  /** @param capacities blocks of `blockSize` tokens that the prefix cache of each replica holds; 0: it has none. */
  constructor(
    capacities: readonly number[],
    private readonly blockSize: number,
  ) {
    this.#replicas = capacities.map((capacity) => new ReplicaLoad(new KnownPrefixes(capacity)));
  }

  /** Tokens of the replica's unfinished requests, as expected when they were placed. */
  load(replica: number): number {
    return this.#replicas[replica]!.tokens;
  }

  /** @param isEligible says of each replica whether it may be chosen: one at least. */
  place(request: PlacedRequest, isEligible: (replica: number) => boolean): Place {
    const { promptTokenIds, maxTokens, sampling } = request;
    const isCached = this.#replicas.length > 1 && this.#replicas.some(({ known }) => known.capacity > 0);
    const keys = isCached ? blockKeys(request, this.blockSize) : [];
    let best: { replica: number; cost: number; missing: number; turn: number } | undefined;
    for (let replica = 0; replica < this.#replicas.length; replica++) {
      if (!isEligible(replica)) continue;
      const { tokens, turn, known } = this.#replicas[replica]!;
      const matched = known.match(keys);
      const missing = promptTokenIds.length - matched * this.blockSize;
      const evicted = Math.max(0, known.size + keys.length - matched - known.capacity) * this.blockSize;
      const cost = tokens + missing + (known.capacity > 0 ? evicted : 0);
      if (!best || cost < best.cost || (cost === best.cost && turn < best.turn))
        best = { replica, cost, missing, turn };
    }
    invariant(best, "no replica is eligible");
    const { replica, missing } = best;
    const chosen = this.#replicas[replica]!;
    const weight = missing + sampling.n * Math.min(maxTokens, MAX_EXPECTED_TOKENS);
    chosen.tokens += weight;
    chosen.turn = ++this.#turn;
    chosen.known.learn(keys);
    let released = false;
    const release = () => {
      if (released) return;
      released = true;
      chosen.tokens -= weight;
    };
    return { replica, release };
  }

  /** The replica's prefix cache is empty. */
  forget(replica: number): void {
    this.#replicas[replica]!.known.clear();
  }
}
