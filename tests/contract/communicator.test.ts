import { expect, setDefaultTimeout, test } from "bun:test";
import { allocateRankMemory } from "../../src/ranks/rank-memory.ts";
import type { RoundsResult } from "./communicator-rounds.ts";

setDefaultTimeout(300_000);

const ROUNDS = Number(process.env["OCTAVO_COMMUNICATOR_ROUNDS"] ?? 80);

/** Runs all ranks, each in a Worker of that script. */
function runRanks(script: string, size: number): Promise<RoundsResult[]> {
  const memory = allocateRankMemory(size);
  return Promise.all(
    Array.from({ length: size }, (_, rank) => {
      const { promise, resolve, reject } = Promise.withResolvers<RoundsResult>();
      const worker = new Worker(new URL(script, import.meta.url));
      worker.onmessage = ({ data }) => {
        worker.terminate();
        resolve(data);
      };
      worker.onerror = ({ message }) => reject(new Error(message));
      worker.postMessage({ memory, rank, rounds: ROUNDS });
      return promise;
    }),
  );
}

test.each([2, 4, 8])(
  `cpu: ${ROUNDS} rounds of random lengths and delays are bit-equal on %d ranks, and right`,
  async (size) => {
    const [first, ...others] = await runRanks("./communicator-worker.ts", size);
    expect(first!.wrong).toEqual([]);
    for (const other of others) expect(other).toEqual(first!);
  },
);
