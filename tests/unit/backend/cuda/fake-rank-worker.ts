import { RankGroup, type RankMemory } from "../../../../src/ranks/rank-group.ts";
import { StepRing } from "../../../../src/ranks/step-ring.ts";
import { Follower } from "../../../../src/runner/tensor-parallel.ts";
import { FakeRank } from "./fake-rank.ts";

/** What the second rank did, once it has ended. */
export interface FakeRankEnd {
  readonly error?: string;
  /** Kernels launched, and calls of the driver. */
  readonly entries: readonly string[];
  readonly calls: number;
  readonly leftovers: readonly string[];
}

declare const self: Worker;

self.onmessage = async ({
  data: { memory, fails },
}: MessageEvent<{ memory: RankMemory; fails?: number }>) => {
  const group = new RankGroup(memory, 1);
  const fake = new FakeRank(group);
  let error: string | undefined;
  try {
    const { runner, backend } = await fake.build();
    try {
      const { launch } = runner;
      let steps = 0;
      runner.launch = (batch) => {
        if (++steps === fails) throw new RangeError("out of everything");
        launch.call(runner, batch);
      };
      new Follower(runner, group, new StepRing(group)).follow();
      runner.dispose();
    } finally {
      backend.dispose();
    }
  } catch (thrown) {
    error = (thrown as Error).message;
    group.fail(error);
  }
  const { calls, launches } = fake.machine.cuda;
  postMessage({
    ...(error !== undefined && { error }),
    ...{ entries: launches.map(({ entry }) => entry), calls: calls.length },
    leftovers: fake.machine.leftovers,
  } satisfies FakeRankEnd);
};
