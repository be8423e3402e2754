import { expect, setDefaultTimeout, spyOn, test } from "bun:test";
import { EngineDeadError, InvariantError } from "../../../src/base/errors.ts";
import { RankGroup } from "../../../src/ranks/rank-group.ts";
import { allocateRankMemory } from "../../../src/ranks/rank-memory.ts";
import { StepRing } from "../../../src/ranks/step-ring.ts";
import { thrown } from "../../support.ts";
import { startRank } from "./support.ts";

setDefaultTimeout(300_000);

const sumOf = (message: Int32Array) =>
  message.reduce((sum, word, i) => (sum + word * (i + 1)) | 0, message.length);

test("every rank reads every message, those longer than the ring too", async () => {
  const memory = allocateRankMemory(3);
  const readers = [1, 2].map((rank) => startRank<number[]>(memory, rank, "ring"));
  const group = new RankGroup(memory, 0);
  const ring = new StepRing(group);
  const sums: number[] = [];
  for (const [i, length] of [3, 0, 700_000, 1, 262_142, 50_000, 300_001, 7].entries()) {
    const message = Int32Array.from({ length }, (_, at) => at * 31 + i);
    ring.publish(message);
    sums.push(sumOf(message));
  }
  // Closing ends whoever waits for the next message; none that was sent is lost.
  group.close();
  expect(await Promise.all(readers)).toEqual([sums, sums]);
});

function pair(timeout = 20_000) {
  const memory = allocateRankMemory(2, timeout);
  const groups = [0, 1].map((rank) => new RankGroup(memory, rank));
  const [leader, reader] = groups.map((group) => new StepRing(group));
  return { groups, leader: leader!, reader: reader! };
}

test("messages come in their order, over and over the ring", () => {
  const { leader, reader } = pair();
  for (let i = 0; i < 50; i++) {
    const messages = [Int32Array.of(i), new Int32Array(9000 + i).fill(i), Int32Array.of(-i, 2 ** 31 - 1)];
    for (const message of messages) leader.publish(message);
    for (const message of messages) expect(reader.next()).toEqual(message);
  }
});

test("who counts words wakes whoever sleeps for them: nobody sleeps its slice to the end", () => {
  const { leader, reader } = pair();
  using notify = spyOn(Atomics, "notify");
  leader.publish(Int32Array.of(7));
  const counters = notify.mock.calls.at(-1)![0];
  expect(notify.mock.calls.at(-1)).toEqual([counters, 0]);
  expect(Atomics.load(counters, 0)).toBeGreaterThan(0);
  reader.next();
  expect(notify.mock.calls.at(-1)).toEqual([expect.anything(), 1]);
});

test("a reader that makes no room has failed", () => {
  const { leader, reader } = pair(100);
  const error = thrown(() => leader.publish(new Int32Array(2 ** 19)));
  expect(error).toBeInstanceOf(EngineDeadError);
  expect((error as Error).message).toContain("rank 1 has not answered");
  expect(thrown(() => leader.publish(Int32Array.of(1)))).toBeInstanceOf(EngineDeadError);
  expect(thrown(() => reader.next())).toBeInstanceOf(EngineDeadError);
});

test("a leader that stops within a message has failed; between messages it may take its time", () => {
  const { leader, reader, groups } = pair(100);
  thrown(() => leader.publish(new Int32Array(2 ** 19)));
  expect(groups[1]!.failure).toBeDefined();
  const idle = pair(50);
  idle.leader.publish(Int32Array.of(4));
  expect(idle.reader.next()).toEqual(Int32Array.of(4));
  idle.groups[0]!.close();
  expect(idle.reader.next()).toBeUndefined();
  expect(thrown(() => reader.next())).toBeInstanceOf(EngineDeadError);
});

test("only the leader publishes", () => {
  expect(thrown(() => pair().reader.publish(Int32Array.of(1)))).toBeInstanceOf(InvariantError);
});
