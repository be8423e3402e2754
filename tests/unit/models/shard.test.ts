import { afterAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import type { Tensor } from "../../../src/backend/tensor.ts";
import { ConfigError } from "../../../src/base/errors.ts";
import { type Shard, shareOf } from "../../../src/base/shard.ts";
import { type ModelConfig, readModelConfig } from "../../../src/models/config.ts";
import { defineModel } from "../../../src/models/registry.ts";
import { writeDivisibleModels } from "../../model/divisible-models.ts";
import { FIXTURES, GGUF_FIXTURES } from "../../model/fixtures.ts";
import { temporaryFolder, thrown } from "../../support.ts";
import { bytesOf, FakeBackend } from "../loader/fake-backend.ts";
import { loadRank, logitsOf } from "./ranks.ts";

setDefaultTimeout(300_000);

const folder = temporaryFolder();
afterAll(() => folder[Symbol.dispose]());
const DIVISIBLE_MODELS = writeDivisibleModels(folder);

/** Folders by name. */
const MODELS = new Map<string, string>([
  ...[...FIXTURES, ...GGUF_FIXTURES].map(({ name, modelDir }) => [name, modelDir] as const),
  ...DIVISIBLE_MODELS.map(({ name, folder }) => [name, folder] as const),
]);

const CASES = [...MODELS].flatMap(([name, path]) =>
  [2, 4].filter((size) => readModelConfig(path).numHeads % size === 0).map((size) => ({ name, path, size })),
);

/** Rows or columns of a matrix, one after another. */
type Parts = readonly (readonly [start: number, end: number])[];

/** What a rank should hold of a parameter of the whole model: by what the families' layers mean, not by their specs. */
function partsOf(name: string, config: ModelConfig, shard: Shard): { rows?: Parts; columns?: Parts } {
  const { numHeads, numKvHeads, headDim, intermediateSize, vocabSize } = config;
  const { rank, size } = shard;
  const nth = (start: number, length: number, parts: number, index: number): [number, number] => [
    start + (length / parts) * index,
    start + (length / parts) * (index + 1),
  ];
  if (/qkv\.(?:weight|bias)$/.test(name)) {
    const kvRanks = Math.min(size, numKvHeads);
    const kvRank = Math.floor((rank * kvRanks) / size);
    const [q, kv] = [numHeads * headDim, numKvHeads * headDim];
    return { rows: [nth(0, q, size, rank), nth(q, kv, kvRanks, kvRank), nth(q + kv, kv, kvRanks, kvRank)] };
  }
  if (/output\.weight$/.test(name)) return { columns: [nth(0, numHeads * headDim, size, rank)] };
  if (/gateUp\.(?:weight|bias)$/.test(name))
    return { rows: [0, intermediateSize].map((start) => nth(start, intermediateSize, size, rank)) };
  if (/down\.weight$/.test(name)) return { columns: [nth(0, intermediateSize, size, rank)] };
  if (/^(?:embedding|lmHead)\.weight$/.test(name)) {
    const { start, end } = shareOf(vocabSize, shard);
    return { rows: [[start, end]] };
  }
  expect(name).toMatch(/[nN]orm\.weight$|output\.bias$|down\.bias$/);
  return {};
}

function cut(whole: Tensor, { rows, columns }: { rows?: Parts; columns?: Parts }): Uint8Array {
  const bytes = bytesOf(whole);
  const rowBytes = bytes.length / whole.dim(0);
  if (rows)
    return Buffer.concat(rows.map(([start, end]) => bytes.subarray(start * rowBytes, end * rowBytes)));
  if (!columns) return bytes;
  const lines = Array.from({ length: whole.dim(0) }, (_, i) =>
    bytes.subarray(i * rowBytes, (i + 1) * rowBytes),
  );
  return Buffer.concat(
    lines.flatMap((line) => columns.map(([start, end]) => line.subarray(start * 4, end * 4))),
  );
}

describe("the parts of a model that ranks load", () => {
  test.each(CASES)("$name on $size", async ({ path, size }) => {
    const config = readModelConfig(path);
    const whole = await loadRank(path, { rank: 0, size: 1 }, new FakeBackend().backend);
    for (let rank = 0; rank < size; rank++) {
      const part = await loadRank(path, { rank, size }, new FakeBackend().backend);
      expect([...part.weights.keys()]).toEqual([...whole.weights.keys()]);
      for (const [name, tensor] of part.weights) {
        const expected = cut(whole.weights.get(name)!, partsOf(name, config, { rank, size }));
        expect([name, Buffer.compare(bytesOf(tensor), expected)]).toEqual([name, 0]);
      }
      const numKvHeads = Math.max(1, config.numKvHeads / size);
      const heads = config.layerKvHeads.map(({ headDim }) => ({ numKvHeads, headDim }));
      expect(part.definition.cachedLayers.map(({ window: _, ...each }) => each)).toEqual(heads);
    }
  });
});

describe("a model computed by ranks", () => {
  test.each(CASES)("$name on $size: the logits of the whole", async ({ path, size }) => {
    const [expected, actual] = [await logitsOf(path, 1), await logitsOf(path, size)];
    expect(actual.length).toBe(expected.length);
    for (const [t, row] of expected.entries()) {
      const scale = Math.max(...row.map(Math.abs));
      expect(scale).toBeGreaterThan(0);
      expect(actual[t]).toHaveLength(row.length);
      const error = row.reduce((most, x, i) => Math.max(most, Math.abs(x - actual[t]![i]!)), 0);
      expect(error).toBeLessThan(1e-4 * scale);
    }
  });
});

test("a number of ranks that does not divide a model is refused, naming those that do", () => {
  const config = readModelConfig(MODELS.get("qwen3, 2 key/value heads and biases")!);
  const sized = (size: number, fields: Partial<ModelConfig> = {}) =>
    thrown(() => defineModel({ ...config, ...fields }, { shard: { rank: size - 1, size } }));
  const error = sized(3);
  expect(error).toBeInstanceOf(ConfigError);
  expect(error).toMatchObject({ option: "tensorParallelSize" });
  expect((error as Error).message).toBe(
    "tensorParallelSize 3 does not divide the model's 8 heads, 2 key/value heads, 72 intermediate dimensions and 208 tokens; what does is 1, 2, 4, 8",
  );
  expect((sized(16) as Error).message).toMatch(/what does is 1, 2, 4, 8$/);
  expect((sized(8, { intermediateSize: 36 }) as Error).message).toMatch(/what does is 1, 2, 4$/);
  expect((sized(2, { vocabSize: 203 }) as Error).message).toMatch(/what does is 1$/);
  const layerKvHeads = [3, 3, 6].map((numKvHeads) => ({ numKvHeads, headDim: 16 }));
  expect((sized(4, { layerKvHeads, numHeads: 12, vocabSize: 216 }) as Error).message).toMatch(
    /3 and 6 key\/value heads, .* what does is 1, 3, 6$/,
  );
});

describe("shares", () => {
  test.each([
    [8, 4, ["0-2", "2-4", "4-6", "6-8"]],
    [7, 3, ["0-2", "2-4", "4-7"]],
    [2, 4, ["0-1", "0-1", "1-2", "1-2"]],
    [1, 3, ["0-1", "0-1", "0-1"]],
    [5, 1, ["0-5"]],
  ])("of %d units among %d ranks", (count, size, expected) => {
    const shares = Array.from({ length: size }, (_, rank) => shareOf(count, { rank, size }));
    expect(shares.map(({ start, end }) => `${start}-${end}`)).toEqual(expected);
  });
});
