import { expect, setDefaultTimeout, test } from "bun:test";
import type { SuperblockWeight, Weight } from "../../../src/backend/weight.ts";
import { ModelDataError } from "../../../src/base/errors.ts";
import type { Span } from "../../../src/base/shard.ts";
import { bytesOf } from "./fake-backend.ts";
import { blocks, cut, HEAD, load, matrix, unpaired } from "./gguf-matrices.ts";

setDefaultTimeout(300_000);

const COLUMNS = 768;
const ALL = { start: 0, end: COLUMNS };

/** The numbers that a weight stands for, each operation rounded to float32. */
function floatsOf(weight: SuperblockWeight): Float32Array {
  const { shape, bits, groupSize, minima, data, steps, units } = weight;
  const codes = bytesOf(data);
  const signed = new Int8Array(new Uint8Array(bytesOf(steps)).buffer);
  const halves = new Float16Array(new Uint8Array(bytesOf(units)).buffer);
  const count = minima ? 2 : 1;
  return Float32Array.from({ length: shape[0] * shape[1] }, (_, i) => {
    const code = bits === 8 ? codes[i]! : (codes[i >> 1]! >> (4 * (i & 1))) & 15;
    const factor = (j: number) =>
      Math.fround(signed[Math.floor(i / groupSize) * count + j]! * halves[Math.floor(i / 256) * count + j]!);
    return Math.fround(factor(0) * code) - (minima ? factor(1) : 32 * factor(0));
  });
}

function superblocks(weight: Weight): SuperblockWeight {
  if (weight.format !== "superblocks") throw new Error(weight.format);
  return weight;
}

/** Query, key and value of `types`, of a rank that has some of the heads. */
async function loadAttention(types: readonly ("Q4_K" | "Q5_K" | "Q6_K")[], first: number) {
  const [q, k, v] = types.map((type, i) => blocks(type, i === 0 ? 32 : 16, COLUMNS));
  const heads = { start: 2 * first * HEAD, end: 4 * HEAD };
  const rest = { start: first * HEAD, end: 2 * HEAD };
  const tensors = {
    "blk.0.attn_q.weight": q!.stored,
    "blk.0.attn_k.weight": k!.stored,
    "blk.0.attn_v.weight": v!.stored,
  };
  const parts: [string, number, Span][] = [
    ["q", 32, heads],
    ["k", 16, rest],
    ["v", 16, rest],
  ];
  return {
    weight: await load(tensors, matrix(parts, ALL, COLUMNS)),
    expected: Float32Array.of(
      ...cut(unpaired(q!.values, COLUMNS), heads, ALL, COLUMNS),
      ...cut(unpaired(k!.values, COLUMNS), rest, ALL, COLUMNS),
      ...cut(v!.values, rest, ALL, COLUMNS),
    ),
  };
}

test.each([
  [["Q4_K", "Q4_K", "Q4_K"], 4, 32, true],
  [["Q5_K", "Q5_K", "Q5_K"], 8, 32, true],
  [["Q6_K", "Q6_K", "Q6_K"], 8, 16, false],
  [["Q4_K", "Q4_K", "Q6_K"], 8, 16, true],
  [["Q4_K", "Q5_K", "Q4_K"], 8, 32, true],
] as const)("%p: the numbers are ggml's to the bit", async (types, bits, groupSize, minima) => {
  for (const first of [0, 1]) {
    const { weight, expected } = await loadAttention(types, first);
    const found = superblocks(weight);
    expect([found.bits, found.groupSize, found.minima]).toEqual([bits, groupSize, minima]);
    expect(floatsOf(found)).toEqual(expected);
  }
});

test("columns of whole superblocks are cut; others become floats", async () => {
  const { stored, values } = blocks("Q4_K", 24, COLUMNS);
  const rows = { start: 0, end: 24 };
  const loadColumns = (columns: Span) =>
    load({ "blk.0.attn_output.weight": stored }, matrix([["o", 24, rows]], columns, COLUMNS));
  const whole = { start: 256, end: 768 };
  expect(floatsOf(superblocks(await loadColumns(whole)))).toEqual(
    Float32Array.from(cut(values, rows, whole, COLUMNS)),
  );
  const partial = { start: 384, end: 768 };
  const weight = await loadColumns(partial);
  expect(weight.format).toBe("dense");
  const floats = new Float32Array(new Uint8Array(bytesOf(weight.data)).buffer);
  expect(floats).toEqual(Float32Array.from(cut(values, rows, partial, COLUMNS)));
});

test.each([
  ["Q4_K", 144 * 5, [0, 0x7c]],
  ["Q5_K", 176 * 5 + 2, [1, 0x7c]],
  ["Q6_K", 210 * 5 + 208, [0, 0xfc]],
] as const)(
  "%s: a scale that is no finite number is refused by the tensor's name",
  async (type, at, half) => {
    const { stored } = blocks(type, 16, COLUMNS);
    stored.data.set(half, at);
    const spec = matrix([["v", 16, { start: 0, end: 16 }]], ALL, COLUMNS);
    const error = await load({ "blk.0.attn_v.weight": stored }, spec).catch((reason) => reason);
    expect(error).toBeInstanceOf(ModelDataError);
    expect(error.message).toContain('tensor "blk.0.attn_v.weight" has a scale that is no finite number');
  },
);
