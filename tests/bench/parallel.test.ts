import { expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";
import { describeRow, layersThatTake, rowOf } from "../../bench/parallel.ts";
import { readModelConfig } from "../../src/models/config.ts";

setDefaultTimeout(300_000);

const MODEL = readModelConfig(join(import.meta.dir, "../../bench/models/llama-70b"));

test("the layers of 70B that take so many bytes, no more than needed", () => {
  // 80 layers are the whole model: 70.6 billion weights.
  expect(layersThatTake(MODEL, 141.1e9)).toBe(80);
  // A layer is 855.65 million weights; embedding and LM head are 2.1 billion.
  const layer = 2 * 855_654_400;
  const around = 2 * (2 * 128_256 * 8192 + 8192);
  expect(layersThatTake(MODEL, around + 57 * layer)).toBe(57);
  expect(layersThatTake(MODEL, around + 57 * layer + 1)).toBe(58);
});

test("a row stands beside that of one GPU, if it was measured", () => {
  const one = { name: "8B", model: "m", ranks: 1, workloads: [] };
  const two = { ...one, ranks: 2 };
  const first = rowOf(one, "1x32+128", 200, []);
  expect(first).toEqual({ name: "8B", workload: "1x32+128", ranks: 1, replicas: 1, tokensPerSecond: 200 });
  const before = [first, rowOf(one, "nano-vllm", 9000, [])];
  expect(rowOf(two, "1x32+128", 330, before).times).toBeCloseTo(1.65);
  expect(rowOf(two, "nano-vllm", 15_300, before).times).toBeCloseTo(1.7);
  const copies = rowOf({ ...one, replicas: 2 }, "2 × nano-vllm", 18_000, before);
  expect(copies.times).toBeCloseTo(2);
  expect(describeRow(copies)).toContain("2 replicas   18000.0 tokens/s, 2.00 times one GPU");
  expect(rowOf({ ...two, name: "70B" }, "1x32+128", 50, before).times).toBeUndefined();
  expect(describeRow(rowOf(two, "1x32+128", 330, before))).toContain("330.0 tokens/s, 1.65 times one GPU");
});
