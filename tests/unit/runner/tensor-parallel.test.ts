import { expect, setDefaultTimeout, test } from "bun:test";
import { DeviceError, EngineDeadError, InvariantError } from "../../../src/base/errors.ts";
import { Exchange } from "../../../src/ranks/exchange.ts";
import { RankGroup } from "../../../src/ranks/rank-group.ts";
import { allocateRankMemory } from "../../../src/ranks/rank-memory.ts";
import { StepRing } from "../../../src/ranks/step-ring.ts";
import { Follower, TensorParallelRunner } from "../../../src/runner/tensor-parallel.ts";
import type { Runner, StepResult } from "../../../src/runner/types.ts";
import { thrown } from "../../support.ts";
import { toyBatch, toyJoin } from "./toy-model.ts";

setDefaultTimeout(300_000);

const BATCH = toyBatch([{ slot: 0, count: 3, sample: true }], [toyJoin(0, [1, 2, 3])]);
const RESULT: StepResult = {
  ...{ tokens: Int32Array.of(4), offsets: Int32Array.of(0, 1) },
  ...{ logprobs: new Map(), promptLogprobs: new Map(), logits: new Map(), states: new Map() },
};

/** A leader and another rank in one thread; what each of their own runners was asked. */
function twoRanks(fail: (call: string) => void = () => {}, timeout = 20_000) {
  const memory = allocateRankMemory(2, timeout);
  const groups = [new RankGroup(memory, 0), new RankGroup(memory, 1)] as const;
  const calls: [string[], string[]] = [[], []];
  const own = (rank: 0 | 1) => {
    const call = (name: string) => {
      calls[rank].push(name);
      fail(`${name} on ${rank}`);
    };
    return {
      ...{ numBlocks: 7, blockSize: 16, maxNumSeqs: 3, maxModelLen: 99, vocabSize: 23, maxDrafts: 0 },
      ...{ maxInFlight: 2, groups: [{ reach: 40 }], states: { numSnapshots: 3, snapshotInterval: 64 } },
      launch: (batch) => call(`launch of ${batch.numTokens}`),
      draw: (masks) => call(`draw with ${masks.map(({ row, mask }) => `${row}: ${mask}`)}`),
      collect: () => {
        call("collect");
        return RESULT;
      },
      dispose: () => call("dispose"),
    } satisfies Runner;
  };
  const leader = new TensorParallelRunner(own(0), groups[0], new StepRing(groups[0]));
  const follower = new Follower(own(1), groups[1], new StepRing(groups[1]));
  return { groups, calls, leader, follower };
}

test("every rank is asked the same in the same order, and the leader answers", () => {
  const { calls, leader, follower } = twoRanks();
  expect(leader).toMatchObject({
    numBlocks: 7,
    blockSize: 16,
    maxNumSeqs: 3,
    maxModelLen: 99,
    maxInFlight: 2,
  });
  leader.launch(BATCH);
  leader.launch(BATCH);
  leader.draw([{ row: 2, mask: Uint32Array.of(7, 2 ** 31) }]);
  expect(leader.collect()).toBe(RESULT);
  for (let i = 0; i < 4; i++) expect(follower.followNext()).toBe(true);
  leader.dispose();
  expect(follower.followNext()).toBe(false);
  follower.follow();
  expect(calls).toEqual([
    ["launch of 3", "launch of 3", "draw with 2: 7,2147483648", "collect", "dispose"],
    ["launch of 3", "launch of 3", "draw with 2: 7,2147483648", "collect"],
  ]);
});

test.each(["launch of 3 on 0", "collect on 0"])("what fails with the leader ends all: %s", (where) => {
  const cause = new DeviceError("no memory is left");
  const { leader, follower, groups } = twoRanks((call) => {
    if (call === where) throw cause;
  });
  const error = thrown(() => {
    leader.launch(BATCH);
    leader.collect();
  });
  expect(error).toBeInstanceOf(EngineDeadError);
  expect(error).toMatchObject({ message: "rank 0 failed: no memory is left", cause });
  expect(thrown(() => follower.follow())).toMatchObject({ message: "rank 0 failed: no memory is left" });
  expect(thrown(() => leader.launch(BATCH))).toBeInstanceOf(EngineDeadError);
  leader.dispose();
  expect(groups[1].isClosed).toBe(false);
});

test("what fails with another rank ends the leader, at its next call at the latest", () => {
  const { leader, follower, calls } = twoRanks((call) => {
    if (call === "collect on 1") throw new RangeError("too much");
  });
  leader.launch(BATCH);
  leader.collect();
  expect(thrown(() => follower.follow())).toMatchObject({ message: "rank 1 failed: too much" });
  const error = thrown(() => leader.launch(BATCH));
  expect(error).toBeInstanceOf(EngineDeadError);
  expect(error).toMatchObject({ message: "rank 1 failed: too much" });
  expect(calls[0]).toEqual(["launch of 3", "collect"]);
});

test("a bug of Octavo's own stays one", () => {
  const { leader } = twoRanks(() => {
    throw new InvariantError("this must not be");
  });
  expect(thrown(() => leader.launch(BATCH))).toBeInstanceOf(InvariantError);
});

test("a rank that does not come to a sum is found by the one that waits", () => {
  let exchange: Exchange | undefined;
  const { leader, follower, groups } = twoRanks(() => exchange!.minimum(1), 150);
  exchange = new Exchange(groups[0]);
  const error = thrown(() => leader.launch(BATCH));
  expect(error).toBeInstanceOf(EngineDeadError);
  expect((error as Error).message).toBe("rank 1 has not answered rank 0 for 0.15 s");
  expect(thrown(() => follower.follow())).toMatchObject({ message: (error as Error).message });
});
