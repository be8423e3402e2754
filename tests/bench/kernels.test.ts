import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { decodeCase, prefillCase } from "../../bench/attention-cases.ts";
import { CEILING_UNIT, MEASURED_FOLDER } from "../../bench/ceilings.ts";
import { CaseMemory, type KernelCase, timeCase } from "../../bench/kernel-case.ts";
import { linearCases, QUANTISED_FORMS } from "../../bench/linear-cases.ts";
import { NAIVE_UNIT } from "../../bench/naive-decode.ts";
import { rowCases } from "../../bench/row-cases.ts";
import { headCases, samplingCases } from "../../bench/sampling-cases.ts";
import { contextLengths, recordedWorkload } from "../../bench/workload.ts";
import { Compiler } from "../../src/backend/cuda/compiler.ts";
import type { CudaBackend } from "../../src/backend/cuda/cuda-backend.ts";
import { openNvrtc, thisMachine } from "../../src/cuda/open-cuda.ts";
import { readModelConfig } from "../../src/models/config.ts";
import { available, describeWith } from "../requirements.ts";
import { FakeGpu } from "./fake-gpu.ts";

setDefaultTimeout(300_000);

const BENCH = join(import.meta.dir, "../../bench");
const SMALL = {
  ...readModelConfig(join(BENCH, "models/qwen3-0.6b")),
  ...{
    hiddenSize: 32,
    intermediateSize: 48,
    numHeads: 4,
    numKvHeads: 2,
    headDim: 8,
    vocabSize: 600,
    numLayers: 2,
  },
};
/** So slow that graphs are short. */
const LIMITS = { bytesPerSecond: 1e6, flopsPerSecond: 1e6 };

/** Times the cases of a model that is small enough for the CPU. */
function times(make: (memory: CaseMemory) => readonly KernelCase[], gpu = new FakeGpu()) {
  using memory = new CaseMemory(gpu, 0);
  const results = make(memory).map((each) => timeCase(gpu, each, LIMITS));
  expect(gpu.liveMarks).toBe(0);
  return results;
}

describe("kernel benchmarks", () => {
  test("products of a layer, alone and together", () => {
    const all = times((memory) => linearCases(memory, "tiny", SMALL, [1, 4]));
    expect(all.map(({ name }) => name)).toEqual(
      [1, 4].flatMap((tokens) =>
        ["QKV", "output", "gate, up", "down", "layer"].map((name) => `${name}, ${tokens} tokens`),
      ),
    );
    // The clock of the fake moves on by a millisecond a product.
    expect(all.map(({ microseconds }) => microseconds)).toEqual(
      [1, 1, 1, 1, 4, 1, 1, 1, 1, 4].map((ms) => 1000 * ms),
    );
    const [qkv, output, gateUp, down, layer] = all.slice(5).map(({ bytes, flops }) => ({ bytes, flops }));
    expect(qkv).toEqual({ bytes: 2 * 64 * 32, flops: 2 * 4 * 64 * 32 });
    expect(layer!.bytes).toBe([qkv!, output!, gateUp!, down!].reduce((total, { bytes }) => total + bytes, 0));
    const { limitMicroseconds, share } = all[5]!;
    expect(limitMicroseconds).toBeCloseTo(2 * 4 * 64 * 32, 9);
    expect(share).toBeCloseTo(limitMicroseconds / 1000, 9);
  });

  test.each([
    ["fp8", 8],
    ["fp8 blocks", 8],
    ["4 bits", 4.1875],
    ["8 bits", 8.1875],
  ])("products by weights of %s count %f bits an element", (name, bits) => {
    const form = QUANTISED_FORMS.find((each) => each.name === name)!;
    const model = { ...SMALL, hiddenSize: 128, intermediateSize: 128, headDim: 32 };
    const [qkv] = times((memory) => linearCases(memory, "tiny", model, [1], form));
    expect(qkv).toMatchObject({ group: `linear tiny, ${name}`, flops: 2 * 256 * 128 });
    expect(qkv!.bytes).toBe((256 * 128 * bits) / 8);
  });

  test("of activations in eight bits, products of more than a few tokens may take half as long", () => {
    const model = { ...SMALL, hiddenSize: 128, intermediateSize: 128, headDim: 32 };
    const speeds = (name: string) => {
      const form = QUANTISED_FORMS.find((each) => each.name === name)!;
      const memory = new CaseMemory({ activationDtype: "bfloat16" } as CudaBackend);
      return linearCases(memory, "tiny", model, [8, 64], form).map(({ speed }) => speed);
    };
    expect(new Set(speeds("4 bits"))).toEqual(new Set([1]));
    expect(speeds("fp8").slice(0, 5)).toEqual([1, 1, 1, 1, 1]);
    expect(speeds("fp8").slice(5)).toEqual([2, 2, 2, 2, 2]);
  });

  test("attention of decode rows and of a prompt", () => {
    const heads = { numHeads: 4, numKvHeads: 2, headDim: 8 };
    const [decode, prefill] = times((memory) => [
      decodeCase(memory, "decode", "3 rows", heads, [5, 40, 17]),
      prefillCase(memory, "prefill", heads, 33),
    ]);
    expect(decode).toMatchObject({ bytes: 62 * 2 * 2 * 8 * 2, flops: 4 * 62 * 4 * 8, microseconds: 3000 });
    expect(prefill).toMatchObject({ flops: 2 * 33 ** 2 * 8 * 4, microseconds: 3000 });
  });

  test("rows, LM head and draws", () => {
    const rows = times((memory) => rowCases(memory, 16, 8, 50));
    expect(rows.map(({ bytes }) => bytes)).toEqual([2 * 8 * 16 * 2, 2 * 8 * 16 * 2]);
    const heads = times((memory) => headCases(memory, "tiny", SMALL, [1, 3]));
    expect(heads.map(({ bytes, flops }) => [bytes, flops])).toEqual(
      [1, 1, 1, 3, 3, 3].map((count) => [2 * 600 * 32, count * 2 * 600 * 32]),
    );
    const draws = times((memory) => samplingCases(memory, 600, [2]));
    expect(draws.map(({ name }) => name)).toContain("top-k + top-p, Zipf logits, 2 rows");
  });

  test("many small launches make one graph, few large ones as many as take 20 ms", () => {
    let launches = 0;
    const each = (bytes: number): KernelCase => ({
      ...{ group: "g", name: "n", bytes, flops: 0, operands: 3 },
      prepare: () => () => launches++,
    });
    const count = (bytes: number) => {
      launches = 0;
      timeCase(new FakeGpu(), each(bytes), LIMITS);
      // Once for each set of operands, then graphs of one warm-up and five timed replays, recorded by running.
      return launches;
    };
    const replays = 6;
    expect(count(1)).toBe(3 + replays * 200);
    expect(count(1e3)).toBe(3 + replays * 20);
    expect(count(1e6)).toBe(1 + replays);
  });
});

test("rows of a decode step are those with tokens left, and see what came before", () => {
  const workload = recordedWorkload(join(BENCH, "workloads/nano-vllm.json"));
  const lengths = (step: number) => contextLengths(workload, step);
  expect([1, 100, 250, 500].map((step) => lengths(step).length)).toEqual([256, 256, 201, 126]);
  const [first] = workload.requests;
  expect(lengths(1)[0]).toBe(first!.promptTokenIds.length + 1);
  // The step that reads most.
  expect(lengths(149).reduce((total, length) => total + length)).toBe(169057);
});

const NVRTC = available(() => openNvrtc(thisMachine(), 13));

describeWith("OCTAVO_REQUIRE_NVRTC", NVRTC, "kernels that are only measured", ({ nvrtc }) => {
  test.each(["sm_80", "sm_89", "sm_90a", "sm_100", "sm_120"])("compile without a warning for %s", (arch) => {
    const cacheFolder = mkdtempSync(join(tmpdir(), "octavo-measured-"));
    try {
      const warnings: string[] = [];
      const warn = (message: string) => warnings.push(message);
      const compiler = new Compiler(nvrtc, { sourceFolder: MEASURED_FOLDER, arch, cacheFolder, warn });
      const image = Buffer.from(compiler.compile(CEILING_UNIT));
      expect(Buffer.from(compiler.compile(NAIVE_UNIT)).includes(".text.decode_pipelined")).toBe(true);
      expect(image.includes(".text.read_loads")).toBe(true);
      expect(image.includes(".text.read_bulk")).toBe(!arch.startsWith("sm_8"));
      expect(warnings).toEqual([]);
    } finally {
      rmSync(cacheFolder, { recursive: true });
    }
  });
});
