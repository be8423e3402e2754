import { describe, expect, setDefaultTimeout, spyOn, test } from "bun:test";
import { WORKER_SCRIPTS } from "../../src/async/async-llm.ts";
import { resolveEngineConfig } from "../../src/base/config.ts";
import {
  AsyncLLM,
  ConfigError,
  EngineDeadError,
  type GenerationStream,
  type LoadProgress,
  ReplicaDeadError,
  type StepReport,
} from "../../src/index.ts";
import { eventually } from "../support.ts";
import { createReplicas, kill, SECOND_FAILS } from "./replicas.ts";
import { collect, createAsyncLLM, expectIdle, GREEDY, LONG, PROMPT, rejection } from "./support.ts";

setDefaultTimeout(300_000);

const PROMPTS = ["Once upon a time", "The dog", "One day", "A girl named Lily", "Mom said", "In the park"];

/** `blocks` blocks of 16 tokens that no other `seed` begins with. */
const tokensOf = (seed: number, blocks: number) =>
  Array.from({ length: 16 * blocks }, (_, i) => 10 + ((seed * 131 + i * 7) % 3000));

const replicasOf = ({ requests }: GenerationStream) => requests.map(({ replica }) => replica);

/** A stream of one endless request on this replica; its first delta has come. */
async function endlessOn(llm: AsyncLLM, replica: number): Promise<GenerationStream> {
  for (;;) {
    const stream = await llm.submit(PROMPT, LONG);
    if (replicasOf(stream)[0] === replica) return stream;
    stream.abort();
    await collect(stream);
  }
}

describe("requests among replicas", () => {
  test("prompts of one call are spread, and give what one engine gives, drawn tokens too", async () => {
    await using one = await createAsyncLLM();
    await using two = await createAsyncLLM({ dataParallelSize: 2 });
    expect([one.replicas.length, two.replicas.length]).toEqual([1, 2]);
    for (const params of [
      GREEDY,
      { temperature: 1, maxTokens: 12 },
      { n: 3, temperature: 1, maxTokens: 4 },
    ]) {
      const [expected, outputs] = [await one.generate(PROMPTS, params), await two.generate(PROMPTS, params)];
      expect(outputs.map((output) => output.outputs)).toEqual(expected.map((output) => output.outputs));
    }
    const generated = two.replicas.map(({ stats }) => stats.generationTokens);
    for (const count of generated) expect(count).toBeGreaterThan(0);
    expect(generated[0]! + generated[1]!).toBe(one.stats.generationTokens);
    const { promptTokens, generationTokens } = one.stats;
    expect(two.stats).toMatchObject({ promptTokens, generationTokens });
    await expectIdle(two);
  });

  test("a prompt goes to the replica that has its prefix cached, all of its completions together", async () => {
    await using llm = await createAsyncLLM({ dataParallelSize: 2 });
    const ask = async (promptTokenIds: number[], n = 1) => {
      const stream = await llm.submit(
        { promptTokenIds },
        { n, temperature: 1, maxTokens: 2, ignoreEos: true },
      );
      expect((await collect(stream)).length).toBeGreaterThanOrEqual(n);
      return replicasOf(stream)[0];
    };
    const prefixes = [tokensOf(1, 8), tokensOf(2, 8)] as const;
    expect([await ask(prefixes[0]), await ask(prefixes[1])]).toEqual([0, 1]);
    for (const [which, tail] of [
      [1, 5],
      [0, 6],
      [0, 7],
      [1, 8],
    ] as const)
      expect(await ask([...prefixes[which], tail], 3)).toBe(which);
    const hits = llm.replicas.map(({ stats }) => stats.prefixHits);
    // Two requests each, the prefix once for each completion.
    expect(hits).toEqual([2 * 3 * 128, 2 * 3 * 128]);
    expect(llm.stats.prefixHits).toBe(4 * 3 * 128);
    expect(llm.replicas.map(({ stats }) => stats.generationTokens)).toEqual([14, 14]);

    expect(await llm.resetPrefixCache()).toBe(true);
    expect(llm.stats.cachedBlocks).toBe(0);
    // What is forgotten draws no request: they take turns again.
    expect(await ask(prefixes[1])).toBe(0);
  });

  test("times are on one clock, whichever replica reports them", async () => {
    await using llm = await createAsyncLLM({ dataParallelSize: 2 });
    const reports: StepReport[] = [];
    llm.onStep((report) => reports.push(report));
    await llm.generate(PROMPTS, GREEDY);
    const finished = reports.flatMap(({ replica, finished }) =>
      finished.map(({ metrics }) => ({ replica, metrics })),
    );
    expect(finished).toHaveLength(PROMPTS.length);
    expect(new Set(finished.map(({ replica }) => replica))).toEqual(new Set([0, 1]));
    for (const { metrics } of finished) {
      const { arrivalTime, firstScheduledTime, firstTokenTime, finishedTime } = metrics;
      expect([firstScheduledTime!, firstTokenTime!, finishedTime!].toSorted((a, b) => a - b)).toEqual([
        ...[firstScheduledTime!, firstTokenTime!, finishedTime!],
      ]);
      // Workers start at different times, and their clocks with them.
      expect(firstScheduledTime! - arrivalTime).toBeWithin(0, 60);
    }
  });

  test("an abort reaches the replica that has the request, and no other", async () => {
    await using llm = await createAsyncLLM({ dataParallelSize: 2 });
    const [kept, left] = [await endlessOn(llm, 0), await endlessOn(llm, 1)];
    await eventually(() => llm.replicas.every(({ stats }) => stats.running === 1));
    expect(llm.stats.running).toBe(2);
    expect(await llm.resetPrefixCache()).toBe(false);
    left.abort();
    expect((await collect(left)).at(-1)!.finishReason).toBe("abort");
    await eventually(() => llm.replicas[1]!.stats.running === 0);
    expect((await collect(kept)).at(-1)!.finishReason).toBe("length");
    await expectIdle(llm);
  });
});

describe("a replica's death", () => {
  test("takes its own requests only; later ones go to the living; the last takes all", async () => {
    await using llm = await createReplicas();
    const ends = new Map<string, readonly string[]>();
    llm.onStep(({ finished }) => {
      for (const { id, finishReasons } of finished) ends.set(id, finishReasons);
    });
    const [first, second] = [await endlessOn(llm, 0), await endlessOn(llm, 1)];
    const both = await llm.submit([PROMPT, PROMPT], LONG);
    expect(replicasOf(both).toSorted()).toEqual([0, 1]);
    await eventually(() => llm.replicas.every(({ stats }) => stats.running === 2));
    const failures = [rejection(collect(second)), rejection(collect(both))];
    await kill(llm, 1);
    for (const error of await Promise.all(failures)) {
      expect(error).toBeInstanceOf(ReplicaDeadError);
      expect(error).toMatchObject({ code: "replica_dead", replica: 1 });
      expect((error as Error).message).toBe("replica 1 died: the engine worker died: it exited with code 7");
    }
    // The other prompt of the two ends with it.
    const other = both.requests.find(({ replica }) => replica === 0)!.id;
    await eventually(() => ends.has(other));
    expect(ends.get(other)).toEqual(["abort"]);
    expect((await collect(first)).at(-1)!.finishReason).toBe("length");
    expect(llm.failure).toBeUndefined();
    expect(llm.replicas.map(({ failure }) => failure?.message)).toEqual([
      undefined,
      "the engine worker died: it exited with code 7",
    ]);
    expect(llm.replicas[1]!.stats).toMatchObject({ running: 0, waiting: 0, kvUsage: 0 });
    const streams = await Promise.all(PROMPTS.map((prompt) => llm.submit(prompt, GREEDY)));
    expect(streams.flatMap(replicasOf)).toEqual(PROMPTS.map(() => 0));
    await Promise.all(streams.map(collect));
    expect(await llm.resetPrefixCache()).toBe(true);
    await expectIdle(llm);

    const last = rejection(llm.generate(PROMPT, LONG));
    await eventually(() => llm.stats.running === 1);
    await kill(llm, 0);
    for (const error of [await last, await rejection(llm.submit(PROMPT))]) {
      expect(error).toBeInstanceOf(EngineDeadError);
      expect(error).toMatchObject({ code: "engine_dead" });
    }
    expect(llm.failure).toMatchObject({ code: "engine_dead", exitCode: 70 });
    expect(llm.numUnfinished).toBe(0);
  });

  test("disposing of all is nobody's death", async () => {
    const llm = await createReplicas();
    const streams = await Promise.all([PROMPT, PROMPT].map((prompt) => llm.submit(prompt, LONG)));
    const errors = Promise.all(streams.map((stream) => rejection(collect(stream))));
    await llm.dispose();
    for (const error of await errors) expect(error).toMatchObject({ code: "engine_dead" });
    expect(llm.failure!.message).toContain("disposed");
  });

  test("while it loads ends the others' loading", async () => {
    const error = await rejection(createReplicas({ revision: SECOND_FAILS }));
    expect(error).toBeInstanceOf(EngineDeadError);
    expect((error as Error).message).toContain("no second one");
  });
});

test("each has the next GPUs; what fits none of them fits nowhere", async () => {
  const engine = new URL("./failing-engine-worker.ts", import.meta.url);
  const config = resolveEngineConfig({ skipTokenizerInit: true, gpuIndex: 3, tensorParallelSize: 2 });
  const scripts = { ...WORKER_SCRIPTS, engine };
  await using llm = await AsyncLLM.start(scripts, "die", config, { dataParallelSize: 3 });
  // The worker's sizes tell its GPU.
  expect(llm.replicas.map(({ cacheConfig }) => cacheConfig.numBlocks)).toEqual([4 + 3, 4 + 5, 4 + 7]);
  expect(llm.maxModelLen).toBe(64 - 7);
});

test("a replica that is stuck gets no requests while another is not", async () => {
  const engine = new URL("./failing-engine-worker.ts", import.meta.url);
  const config = resolveEngineConfig({ skipTokenizerInit: true });
  const llm = await AsyncLLM.start({ ...WORKER_SCRIPTS, engine }, "hang", config, { dataParallelSize: 2 });
  const submit = async () => replicasOf(await llm.submit({ promptTokenIds: [5, 6, 7] }))[0];
  const { now } = performance;
  let passed = 0;
  const clock = spyOn(performance, "now").mockImplementation(() => now.call(performance) + passed);
  try {
    expect(await submit()).toBe(0);
    expect(llm.secondsWithoutProgress).toBe(0);
    passed += 31_000;
    expect([await submit(), await submit(), await submit()]).toEqual([1, 1, 1]);
    passed += 31_000;
    expect(llm.secondsWithoutProgress).toBeWithin(31, 62);
    expect(await submit()).toBe(0);
  } finally {
    clock.mockRestore();
    void llm.dispose();
  }
});

test("progress is of all replicas together", async () => {
  const reports: LoadProgress[] = [];
  await using llm = await createAsyncLLM({
    dataParallelSize: 3,
    onProgress: (progress) => reports.push(progress),
  });
  expect(llm.replicas).toHaveLength(3);
  const { loadedBytes, totalBytes } = reports.at(-1)!;
  expect(loadedBytes).toBe(totalBytes);
  for (const [i, report] of reports.entries()) {
    expect(report.totalBytes).toBe(totalBytes);
    expect(report.loadedBytes).toBeGreaterThanOrEqual(reports[i - 1]?.loadedBytes ?? 0);
  }
});

test.each([0, 65, 1.5, "2"])("%s replicas are refused", async (dataParallelSize) => {
  const error = await rejection(AsyncLLM.create(undefined, { dataParallelSize: dataParallelSize as number }));
  expect(error).toBeInstanceOf(ConfigError);
  expect(error).toMatchObject({ option: "dataParallelSize" });
});
