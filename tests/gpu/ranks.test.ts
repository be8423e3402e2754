import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type EngineOptions, LLM, type SamplingParams } from "octavo";
import { makeModel } from "../../bench/make-model.ts";
import { Context } from "../../src/cuda/context.ts";
import { Device } from "../../src/cuda/device.ts";
import { serve, startOctavo, textOf } from "../cli/support.ts";
import { FIXTURES, fixture, GEMMA4_FIXTURES, HYBRID_FIXTURES } from "../model/fixtures.ts";
import { referenceSuite } from "../model/suite.ts";
import { eventually, temporaryFolder } from "../support.ts";
import { describeGpus } from "./gpu.ts";
import { expectLikeCpu } from "./like-cpu.ts";
import type { LoadingCosts } from "./loading-ranks.ts";
import { BFLOAT16, EXPERTS_BFLOAT16, FLOAT8, FLOAT16 } from "./tolerances.ts";

setDefaultTimeout(300_000);

const RANKS = 2;
const OPTIONS = {
  ...{ device: "cuda", dtype: "bfloat16", tensorParallelSize: RANKS, kvCacheMemoryBytes: 2 ** 28 },
} as const satisfies EngineOptions;

const BENCH_MODELS = join(import.meta.dir, "../../bench/models");
/** Page-locked memory that each rank reads weights through. */
const STAGING_BYTES = 32 * 2 ** 20;
/** Of a GPU's memory beside weights: a small KV cache, activations, logits, the exchange, and what NCCL and cuBLASLt take. */
const GPU_OVERHEAD_BYTES = 1.25 * 2 ** 30;

/** What commands need to see the GPUs. */
const VISIBLE = { CUDA_VISIBLE_DEVICES: process.env["CUDA_VISIBLE_DEVICES"] ?? "0,1" };
const SERVE = ["-tp", String(RANKS), "--gpu-memory-utilization", "0.2"];

/** The device ends a rank that reads where nothing is, at once; of one that hangs, only that it is late is known. */
const LIMIT_MS = { told: 5000, silent: 30_000 };

describeGpus(RANKS, "ranks on two GPUs", ({ driver }) => {
  /** Bytes that are free on each GPU. */
  const free = () =>
    Array.from({ length: RANKS }, (_, ordinal) => {
      using context = Context.retain(driver.api, Device.open(driver.api, ordinal));
      return context.memory().free;
    });

  describe("give the reference models' results", () => {
    for (const one of FIXTURES)
      referenceSuite(one, [{ name: "2 ranks", options: OPTIONS, maxPrompt: 600 }], BFLOAT16);
    const more = [
      { name: "2 ranks, eager", options: { ...OPTIONS, enforceEager: true }, maxPrompt: 257 },
      { name: "2 ranks, chunks of 64", options: { ...OPTIONS, maxNumBatchedTokens: 64 }, maxPrompt: 600 },
      { name: "2 ranks, invariant", options: { ...OPTIONS, batchInvariant: true }, maxPrompt: 257 },
    ];
    referenceSuite(fixture("qwen3"), more, BFLOAT16);
    for (const one of [...HYBRID_FIXTURES, ...GEMMA4_FIXTURES, fixture("gemma3"), fixture("gpt-oss")]) {
      const options = { ...OPTIONS, maxNumBatchedTokens: 64 };
      const variants = [{ name: "2 ranks, chunks of 64", options, maxPrompt: 600 }];
      referenceSuite(one, variants, EXPERTS_BFLOAT16);
    }
    const narrow = { ...OPTIONS, kvCacheDtype: "fp8" } as const;
    referenceSuite(
      fixture("qwen3-5"),
      [{ name: "2 ranks, a cache in eight bits", options: narrow, maxPrompt: 600 }],
      FLOAT8,
    );
    test("of a hybrid quantised while it is loaded", () =>
      expectLikeCpu(
        fixture("qwen3-5"),
        { ...OPTIONS, dtype: "float16", quantization: "fp8", quantizeActivations: false },
        FLOAT16,
      ));
  });

  describe("draw what one draws, or what is as likely", () => {
    const prompts = Array.from({ length: 24 }, (_, i) => ({
      promptTokenIds: Array.from({ length: 3 + i * 7 }, (_, t) => (t * 37 + i * 101) % 4000),
    }));
    /** Greedy and drawn, from candidates and from all logits, with and without penalties. */
    const params = prompts.map((_, i): SamplingParams => {
      const drawn = [{}, { topP: 0.9, topK: 40 }, { repetitionPenalty: 1.2 }][i % 3];
      return { temperature: i % 2 === 0 ? 0 : 0.8, seed: i, maxTokens: 40, ignoreEos: true, ...drawn };
    });
    const tokensOf = async (options: EngineOptions) => {
      await using llm = await LLM.create(undefined, { ...OPTIONS, ...options });
      const outputs = await llm.generate(prompts, params);
      return outputs.map(({ outputs: [completion] }) => completion!.tokenIds);
    };

    test("in steps replayed and eager, overlapped and not", async () => {
      const replayed = await tokensOf({ maxNumSeqs: 24 });
      expect(await tokensOf({ maxNumSeqs: 24, enforceEager: true })).toEqual(replayed);
      expect(await tokensOf({ maxNumSeqs: 24, overlapScheduling: false })).toEqual(replayed);
      const one = await tokensOf({ maxNumSeqs: 24, tensorParallelSize: 1 });
      // Sums of two terms round otherwise, and two tokens may be as likely as each other: most sequences agree to their end.
      const same = replayed.filter((tokens, i) => Bun.deepEquals(tokens, one[i]));
      expect(same.length).toBeGreaterThan(prompts.length / 2);
    });
  });

  test("memory of both GPUs returns to where it was after dispose, five times over", async () => {
    const cycle = async () => {
      await using llm = await LLM.create(undefined, OPTIONS);
      await llm.generate("Once upon a time", { maxTokens: 8 });
    };
    await cycle();
    const settled = () => eventually(() => Math.min(...free().map((bytes, i) => bytes - before[i]!)) >= 0);
    const before = free();
    for (let i = 0; i < 5; i++) await cycle();
    await settled();
  });

  test("loading takes little of the host's memory, whatever the model's, and of each GPU's its share", async () => {
    using folder = temporaryFolder();
    const [config, model] = [folder.file("config"), folder.file("model")];
    const shape = JSON.parse(readFileSync(join(BENCH_MODELS, "qwen3-8b/config.json"), "utf8")) as object;
    mkdirSync(config);
    writeFileSync(join(config, "config.json"), JSON.stringify({ ...shape, num_hidden_layers: 4 }));
    const weights = makeModel(config, model);
    const load = async () => {
      const child = Bun.spawn(
        [process.execPath, join(import.meta.dir, "loading-ranks.ts"), model, String(RANKS)],
        { stdout: "pipe", stderr: "inherit" },
      );
      const printed = await new Response(child.stdout).text();
      expect(await child.exited).toBe(0);
      return JSON.parse(printed.trim().split("\n").at(-1)!) as LoadingCosts;
    };
    // The compiler takes hundreds of MiB: the first process leaves this shape's kernels in the cache, where the second finds them.
    await load();
    const { host, gpus } = await load();
    const mib = (bytes: number) => Math.round(bytes / 2 ** 20);
    console.log(
      `${mib(weights)} MiB loaded by ${RANKS} ranks: host ${mib(host)} MiB, GPUs ${gpus.map(mib)} MiB`,
    );
    expect(host).toBeLessThan(RANKS * STAGING_BYTES + 2 ** 28);
    for (const bytes of gpus) {
      expect(bytes).toBeGreaterThan(weights / RANKS);
      expect(bytes).toBeLessThan(weights / RANKS + GPU_OVERHEAD_BYTES);
    }
  });

  describe("that fail", () => {
    const folder = temporaryFolder();
    afterAll(() => folder[Symbol.dispose]());
    /** What the driver keeps of a GPU that has been used once is no rank's. */
    beforeAll(async () => {
      using server = await serve(SERVE, { env: VISIBLE });
      server.child.kill("SIGTERM");
      await server.child.exited;
    });
    const LONG = { prompt: "Once upon a time", max_tokens: 900, ignore_eos: true, stream: true };

    test.each<[manner: string, limit: keyof typeof LIMIT_MS]>([
      ["throw", "told"],
      ["exit", "told"],
      ["illegal address", "told"],
      ["hang", "silent"],
    ])("by %s: all clients are told, the process ends, and nothing stays", async (manner, limit) => {
      const before = free();
      const log = folder.file(manner);
      using server = await serve(SERVE, {
        env: { ...VISIBLE, OCTAVO_SPOIL: manner, OCTAVO_SPOIL_AT: "200", OCTAVO_SPOIL_LOG: log },
        preload: join(import.meta.dir, "../cli/spoil-rank.ts"),
      });
      expect(server.banner).toContain("on 2 × cuda");
      const streams = await Promise.all([1, 2, 3].map(() => server.complete(LONG)));
      for (const stream of streams) {
        let received = "";
        for await (const part of textOf(stream.body!)) received += part;
        const last = received.trim().split("\n\n").at(-1)!;
        expect(JSON.parse(last.replace(/^data: /, ""))).toMatchObject({ error: { code: "engine_dead" } });
        expect(received).not.toContain("[DONE]");
      }
      const told = Date.now() - Number(readFileSync(log, "utf8"));
      expect(await server.child.exited).toBe(70);
      const ended = Date.now() - Number(readFileSync(log, "utf8"));
      console.log(`a rank's ${manner}: clients told after ${told} ms, the process ended after ${ended} ms`);
      console.log(await server.log());
      expect(ended).toBeLessThan(LIMIT_MS[limit]);
      await eventually(() => Math.min(...free().map((bytes, i) => bytes - before[i]!)) >= 0);
    });

    test("by SIGKILL of the process: nothing stays on the GPUs", async () => {
      const before = free();
      using server = await serve(SERVE, { env: VISIBLE });
      const stream = await server.complete(LONG);
      await stream.body!.getReader().read();
      server.child.kill("SIGKILL");
      await server.child.exited;
      await eventually(() => Math.min(...free().map((bytes, i) => bytes - before[i]!)) >= 0);
    });

    test("where there are fewer GPUs than ranks", async () => {
      const child = startOctavo(["generate", ...SERVE, "Once"], { env: { CUDA_VISIBLE_DEVICES: "0" } });
      expect(await new Response(child.stderr).text()).toContain(
        "--tensor-parallel-size 2 takes as many GPUs; the driver shows 1",
      );
      expect(await child.exited).toBe(69);
    });
  });
});
