import { afterAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { cpSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type EngineOptions, LLM } from "octavo";
import { temporaryFolder } from "../support.ts";
import { safetensors, type TensorData } from "../unit/loader/support.ts";
import { cosine, maxErrorInStd, relativeError } from "./compare.ts";
import { EXPERT_FIXTURES, type Fixture, fixture } from "./fixtures.ts";
import { FLOAT32, referenceSuite } from "./suite.ts";

setDefaultTimeout(300_000);

const options = { device: "cpu" } as const;
for (const each of EXPERT_FIXTURES) {
  referenceSuite(
    each,
    [
      { name: "whole prompts", options, maxPrompt: 100 },
      { name: "chunks of 7 tokens", options: { ...options, maxNumBatchedTokens: 7 }, maxPrompt: 64 },
      { name: "2 ranks", options: { ...options, tensorParallelSize: 2 }, maxPrompt: 100 },
    ],
    FLOAT32,
  );
}

async function logitsOf(model: string, prompt: readonly number[], more: EngineOptions = {}) {
  await using llm = await LLM.create(model, { ...options, skipTokenizerInit: true, ...more });
  return await llm.logits(prompt);
}

describe("experts that are stored as two tensors a layer", () => {
  const folder = temporaryFolder();
  afterAll(() => folder[Symbol.dispose]());
  const { modelDir, cases } = fixture("qwen3-moe");
  const { prompt } = cases.find(({ name }) => name === "random-33")!;
  const fused = folder.file("fused");
  cpSync(modelDir, fused, { recursive: true });
  writeFileSync(join(fused, "model.safetensors"), safetensors(fuse(readTensors(modelDir))));

  test.each([1, 2])("%d ranks: the same logits", async (tensorParallelSize) => {
    const more = { tensorParallelSize };
    expect(await logitsOf(fused, prompt, more)).toEqual(await logitsOf(modelDir, prompt, more));
  });
});

describe("gpt-oss in floats, whose experts have columns for rows", () => {
  const folder = temporaryFolder();
  afterAll(() => folder[Symbol.dispose]());
  const { modelDir, cases } = fixture("gpt-oss");
  const { prompt } = cases.find(({ name }) => name === "random-33")!;
  const { quantization_config: _, ...config } = JSON.parse(
    readFileSync(join(modelDir, "config.json"), "utf8"),
  );

  // What MXFP4 stands for is exact in each of them.
  test.each([
    ["BF16", 1],
    ["BF16", 2],
    ["F32", 1],
  ] as const)("stored in %s, on %d ranks: the same logits", async (dtype, tensorParallelSize) => {
    const path = folder.file(`${dtype}-${tensorParallelSize}`);
    cpSync(modelDir, path, { recursive: true });
    writeFileSync(join(path, "config.json"), JSON.stringify(config));
    writeFileSync(join(path, "model.safetensors"), safetensors(inFloats(readTensors(modelDir), dtype)));
    const more = { tensorParallelSize, dtype: "float32" } as const;
    // Products by floats add up in another order.
    const [found, expected] = [await logitsOf(path, prompt, more), await logitsOf(modelDir, prompt, more)];
    expect(relativeError(found, expected)).toBeLessThan(1e-5);
  });

  test("they cannot be quantised while they are loaded", async () => {
    const path = folder.file("BF16-1");
    await expect(logitsOf(path, prompt, { quantization: "fp8" })).rejects.toThrow("has columns for rows");
  });
});

describe("experts that are quantised while they are loaded", () => {
  test.each(["fp8", "fp8_per_block"] as const)("%s", async (quantization) => {
    const { modelDir, cases, vocabSize } = fixture("mixtral");
    const { prompt, logits } = cases.find(({ name }) => name === "random-7")! as Fixture["cases"][number];
    const actual = await logitsOf(modelDir, prompt, { quantization });
    for (const [row, expected] of logits.entries()) {
      const found = actual.subarray(row * vocabSize, (row + 1) * vocabSize);
      expect(maxErrorInStd(found, expected)).toBeGreaterThan(1e-3);
      expect(cosine(found, expected)).toBeGreaterThan(0.98);
    }
  });
});

/** The tensors of a checkpoint in one file. */
function readTensors(folder: string): Record<string, TensorData> {
  const file = readFileSync(join(folder, "model.safetensors"));
  const start = 8 + Number(file.readBigUInt64LE(0));
  const { __metadata__: _, ...header } = JSON.parse(file.toString("utf8", 8, start));
  return Object.fromEntries(
    Object.entries<{ dtype: string; shape: number[]; data_offsets: [number, number] }>(header).map(
      ([name, { dtype, shape, data_offsets }]) => {
        const [begin, end] = data_offsets;
        return [name, { dtype, shape, data: file.subarray(start + begin, start + end) }];
      },
    ),
  );
}

/** The same, an expert's matrices stacked in `gate_up_proj` and `down_proj`. */
function fuse(tensors: Record<string, TensorData>): Record<string, TensorData> {
  const result: Record<string, TensorData> = {};
  for (const [name, tensor] of Object.entries(tensors)) {
    const [, block, expert, part] = /^(.*\.experts)\.(\d+)\.(\w+)_proj\.weight$/.exec(name) ?? [];
    if (block === undefined) result[name] = tensor;
    else if (expert === "0" && part !== "up") {
      const parts = part === "down" ? ["down"] : ["gate", "up"];
      const matrices: TensorData[] = [];
      for (let i = 0; `${block}.${i}.${part}_proj.weight` in tensors; i++)
        matrices.push(...parts.map((each) => tensors[`${block}.${i}.${each}_proj.weight`]!));
      const [rows, columns] = tensor.shape as [number, number];
      result[`${block}.${part === "down" ? "down" : "gate_up"}_proj`] = {
        dtype: tensor.dtype,
        shape: [matrices.length / parts.length, parts.length * rows, columns],
        data: Buffer.concat(matrices.map(({ data }) => data as Uint8Array)),
      };
    }
  }
  return result;
}

const E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6];

/** The same, experts in MXFP4 as floats of [E, K, N]. */
function inFloats(tensors: Record<string, TensorData>, dtype: "BF16" | "F32"): Record<string, TensorData> {
  const result: Record<string, TensorData> = {};
  for (const [name, tensor] of Object.entries(tensors)) {
    const [, fused, part] = /^(.*_proj)_(blocks|scales)$/.exec(name) ?? [];
    if (fused === undefined) result[name] = tensor;
    if (part !== "blocks") continue;
    const [count, rows, groups] = tensor.shape as [number, number, number];
    const columns = 32 * groups;
    const [codes, scales] = [tensor.data as Uint8Array, tensors[`${fused}_scales`]!.data as Uint8Array];
    const values = new Float32Array(count * rows * columns);
    for (let row = 0; row < count * rows; row++) {
      for (let column = 0; column < columns; column++) {
        const at = row * columns + column;
        const code = (codes[at >> 1]! >> (4 * (at % 2))) & 15;
        const value = (code & 8 ? -1 : 1) * E2M1[code & 7]! * 2 ** (scales[at >> 5]! - 127);
        values[(Math.floor(row / rows) * columns + column) * rows + (row % rows)] = value;
      }
    }
    const words = new Uint32Array(values.buffer);
    const data = dtype === "F32" ? values : Uint16Array.from(words, (word) => word >>> 16);
    result[fused!] = { dtype, shape: [count, columns, rows], data: new Uint8Array(data.buffer) };
  }
  return result;
}
