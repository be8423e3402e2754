import { expect, setDefaultTimeout, test } from "bun:test";
import { Rendezvous } from "../../bench/rendezvous.ts";
import { awaitRanks, shareBytes } from "../../src/backend/cuda/rank-exchange.ts";
import { DeviceError, InvariantError } from "../../src/base/errors.ts";
import type { RankOutcome, RankTask } from "./rendezvous-worker.ts";

setDefaultTimeout(300_000);

/** Every rank's outcome, on a thread each. */
async function run(tasks: readonly Omit<RankTask, "memory" | "rank" | "size">[]): Promise<RankOutcome[]> {
  const memory = Rendezvous.allocate(tasks.length);
  const workers = tasks.map(() => new Worker(new URL("./rendezvous-worker.ts", import.meta.url)));
  try {
    return await Promise.all(
      workers.map(
        (worker, rank) =>
          new Promise<RankOutcome>((resolve, reject) => {
            worker.onmessage = ({ data }) => resolve(data);
            worker.onerror = reject;
            worker.postMessage({ ...tasks[rank]!, memory, rank, size: tasks.length } satisfies RankTask);
          }),
      ),
    );
  } finally {
    for (const worker of workers) worker.terminate();
  }
}

test("every rank has every rank's numbers, round after round", async () => {
  const outcomes = await run(Array.from({ length: 4 }, () => ({ rounds: 500 })));
  expect(outcomes).toEqual(Array.from({ length: 4 }, () => ({ right: 500 })));
});

test("a rank that gives up is not waited for", async () => {
  const [first, second, third] = await run([{ rounds: 9 }, { rounds: 5, givesUp: true }, { rounds: 9 }]);
  expect(second).toEqual({ right: 5 });
  for (const rank of [first!, third!]) {
    // Whether the last round it took part in ended well for the others depends on how far they were.
    expect(rank.right).toBeOneOf([4, 5]);
    expect(rank.error).toMatch(/^rank \d cannot go on: another rank has failed$/);
  }
});

test("a rank that is about to wait notices that another has given up", () => {
  const memory = Rendezvous.allocate(2);
  const before = new Int32Array(memory.slice(0, 64));
  new Rendezvous(memory, { rank: 0, size: 2 }).giveUp();
  // Words that have not changed would be waited for.
  const waits = [...before.keys()].map((word) =>
    Atomics.wait(new Int32Array(memory, 0, 16), word, before[word]!, 0),
  );
  expect(waits[1]).toBe("not-equal");
});

test("a rank that does not come fails the others, for good", () => {
  const rendezvous = new Rendezvous(Rendezvous.allocate(2), { rank: 0, size: 2 }, 1);
  expect(() => awaitRanks(rendezvous)).toThrow(DeviceError);
  expect(() => awaitRanks(rendezvous)).toThrow("another rank has failed");
});

test("bytes are those that were given, as many as fit", () => {
  const alone = new Rendezvous(Rendezvous.allocate(1), { rank: 0, size: 1 });
  const part = Uint8Array.from({ length: 256 }, (_, i) => i);
  expect(shareBytes(alone, part)).toEqual([part]);
  expect(() => shareBytes(alone, new Uint8Array(257))).toThrow(InvariantError);
});
