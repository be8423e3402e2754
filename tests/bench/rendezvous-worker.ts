import { Rendezvous } from "../../bench/rendezvous.ts";
import { shareNumbers } from "../../src/backend/cuda/rank-exchange.ts";

/** A rank on a thread of its own: exchanges numbers for some rounds, then may give up. */
export interface RankTask {
  readonly memory: SharedArrayBuffer;
  readonly rank: number;
  readonly size: number;
  readonly rounds: number;
  readonly givesUp?: boolean;
}

/** Rounds in which every rank's numbers were as they should be, and the error that ended them. */
export interface RankOutcome {
  readonly right: number;
  readonly error?: string;
}

declare const self: Worker;

self.onmessage = ({ data }: MessageEvent<RankTask>) => {
  const { memory, rank, size, rounds, givesUp } = data;
  const rendezvous = new Rendezvous(memory, { rank, size });
  let right = 0;
  try {
    for (let round = 0; round < rounds; round++) {
      const all = shareNumbers(rendezvous, rank, round * 2 ** 40, -rank);
      const expected = Array.from({ length: size }, (_, other) => [other, round * 2 ** 40, -other]);
      if (Bun.deepEquals(all, expected)) right++;
    }
    if (givesUp) rendezvous.giveUp();
    postMessage({ right } satisfies RankOutcome);
  } catch (error) {
    postMessage({ right, error: (error as Error).message } satisfies RankOutcome);
  }
};
