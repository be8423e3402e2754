import { expect, setDefaultTimeout, test } from "bun:test";
import { createSHA256 } from "hash-wasm";
import type { ResolvedSamplingParams } from "../../../../src/base/sampling-params.ts";
import { Engine } from "../../../../src/engine/engine.ts";
import { RankGroup } from "../../../../src/ranks/rank-group.ts";
import { allocateRankMemory } from "../../../../src/ranks/rank-memory.ts";
import { StepRing } from "../../../../src/ranks/step-ring.ts";
import { TensorParallelRunner } from "../../../../src/runner/tensor-parallel.ts";
import { thrown } from "../../../support.ts";
import { add, drain, makeRequest, range } from "../../engine/helpers.ts";
import { FakeRank } from "./fake-rank.ts";
import type { FakeRankEnd } from "./fake-rank-worker.ts";

setDefaultTimeout(300_000);

const ASKED: readonly Partial<ResolvedSamplingParams>[] = [
  {},
  { temperature: 1 },
  { temperature: 0.7, topK: 20, topP: 0.9, minP: 0.1 },
  { logprobs: 3, promptLogprobs: 2 },
];

/** Two ranks, each in a thread with a fake GPU; the second may fail at one of its steps. */
async function start(fails?: number) {
  const memory = allocateRankMemory(2);
  const worker = new Worker(new URL("./fake-rank-worker.ts", import.meta.url));
  const ended = Promise.withResolvers<FakeRankEnd>();
  worker.onmessage = ({ data }: MessageEvent<FakeRankEnd>) => ended.resolve(data);
  worker.onerror = ({ message }) => ended.reject(new Error(message));
  worker.postMessage({ memory, fails });
  const group = new RankGroup(memory, 0);
  const fake = new FakeRank(group);
  const { runner: own, backend } = await fake.build();
  const runner = new TensorParallelRunner(own, group, new StepRing(group));
  const { config } = fake;
  const engine = new Engine({
    ...{ ...config, runner, overlap: true, eosTokenIds: [], hasher: await createSHA256() },
    ...{ clock: () => 0, nextSeed: () => 1n },
  });
  const end = async () => {
    engine.dispose();
    backend.dispose();
    const other = await ended.promise;
    worker.terminate();
    const { launches } = fake.machine.cuda;
    const entries = launches.map(({ entry }) => entry);
    expect([fake.machine.leftovers, other.leftovers]).toEqual([[], []]);
    fake.machine[Symbol.dispose]();
    return { entries, other };
  };
  return { engine, end };
}

test("two ranks meet, rehearse, capture and run all kinds of steps, neither waiting for what the other does not do", async () => {
  const { engine, end } = await start();
  for (const length of [1, 20, 20, 60, 150])
    for (const asked of ASKED) {
      const request = makeRequest(range(0, length), { maxTokens: 3, ...asked });
      add(engine, request);
      expect(drain(engine).completion(request.id).tokenIds).toEqual([7, 7, 7]);
    }
  for (let i = 0; i < 14; i++)
    add(engine, makeRequest(range(i, 2 + 3 * i), { maxTokens: 2 + i, ...ASKED[i % 4] }));
  drain(engine);
  const { entries, other } = await end();
  expect(other.error).toBeUndefined();
  const exchanged = (all: readonly string[]) =>
    all.filter((entry) => /^(reduce_add|gather_words)$/.test(entry));
  expect(exchanged(entries).length).toBeGreaterThan(200);
  expect(exchanged(other.entries)).toEqual(exchanged(entries));
});

test("one that fails in mid-step ends the other's wait, and both free all they have", async () => {
  const { engine, end } = await start(5);
  for (let i = 0; i < 3; i++) add(engine, makeRequest(range(0, 5 + i), { maxTokens: 30 }));
  expect(thrown(() => drain(engine))).toMatchObject({
    name: "EngineDeadError",
    message: "rank 1 failed: out of everything",
  });
  const { other } = await end();
  expect(other.error).toContain("out of everything");
});
