import { expect, setDefaultTimeout, test } from "bun:test";
import type { GroupedWeight } from "../../../src/backend/weight.ts";
import { ModelDataError } from "../../../src/base/errors.ts";
import type { Span } from "../../../src/base/shard.ts";
import { bytesOf } from "./fake-backend.ts";
import * as matrices from "./gguf-matrices.ts";
import { HEAD, load } from "./gguf-matrices.ts";

setDefaultTimeout(300_000);

const COLUMNS = 192;
const blocks = (type: "Q4_0" | "Q8_0", rows: number) => matrices.blocks(type, rows, COLUMNS);
const unpaired = (values: Float32Array) => matrices.unpaired(values, COLUMNS);
const matrix = (parts: [name: string, rows: number, span: Span][], columns: Span) =>
  matrices.matrix(parts, columns, COLUMNS);
const cut = (values: Float32Array, rows: Span, columns: Span) => matrices.cut(values, rows, columns, COLUMNS);

function floatsOf({ shape, bits, groupSize, data, scales, zeros }: GroupedWeight): Float32Array {
  expect(zeros).toBeUndefined();
  const [n, k] = shape;
  const codes = bytesOf(data);
  const factors = new Float16Array(new Uint8Array(bytesOf(scales)).buffer);
  return Float32Array.from({ length: n * k }, (_, i) => {
    const code = bits === 8 ? codes[i]! : (codes[i >> 1]! >> (4 * (i & 1))) & 15;
    return (code - 2 ** (bits - 1)) * factors[Math.floor(i / groupSize)]!;
  });
}

const ALL = { start: 0, end: COLUMNS };

test.each(["Q4_0", "Q8_0"] as const)(
  "%s: groups of the same numbers, whole and cut, rows in order",
  async (type) => {
    const [q, k, v, o] = [blocks(type, 32), blocks(type, 16), blocks(type, 16), blocks(type, 24)];
    const tensors = {
      "blk.0.attn_q.weight": q.stored,
      "blk.0.attn_k.weight": k.stored,
      "blk.0.attn_v.weight": v.stored,
      "blk.0.attn_output.weight": o.stored,
    };
    for (const [start, end] of [
      [0, 2],
      [1, 2],
    ] as const) {
      const [heads, rest] = [
        { start: 2 * start * HEAD, end: 2 * end * HEAD },
        { start: start * HEAD, end: end * HEAD },
      ];
      const qkv = await load(
        tensors,
        matrix(
          [
            ["q", 32, heads],
            ["k", 16, rest],
            ["v", 16, rest],
          ],
          ALL,
        ),
      );
      if (qkv.format !== "grouped") throw new Error(qkv.format);
      expect([qkv.bits, qkv.groupSize]).toEqual([type === "Q4_0" ? 4 : 8, 32]);
      const expected = [
        ...cut(unpaired(q.values), heads, ALL),
        ...cut(unpaired(k.values), rest, ALL),
        ...cut(v.values, rest, ALL),
      ];
      expect(floatsOf(qkv)).toEqual(Float32Array.from(expected));
    }
    const columns = { start: 64, end: 160 };
    const output = await load(tensors, matrix([["o", 24, { start: 0, end: 24 }]], columns));
    if (output.format !== "grouped") throw new Error(output.format);
    expect(floatsOf(output)).toEqual(Float32Array.from(cut(o.values, { start: 0, end: 24 }, columns)));
  },
);

test("parts of different types, and columns that are no whole blocks, become floats", async () => {
  const [k, v, o] = [blocks("Q4_0", 16), blocks("Q8_0", 16), blocks("Q4_0", 24)];
  const tensors = {
    "blk.0.attn_k.weight": k.stored,
    "blk.0.attn_v.weight": v.stored,
    "blk.0.attn_output.weight": o.stored,
  };
  const rows = { start: 0, end: 16 };
  const mixed = await load(
    tensors,
    matrix(
      [
        ["k", 16, rows],
        ["v", 16, rows],
      ],
      ALL,
    ),
  );
  expect(mixed.format).toBe("dense");
  const floats = new Float32Array(new Uint8Array(bytesOf(mixed.data)).buffer);
  expect(floats).toEqual(Float32Array.of(...unpaired(k.values), ...v.values));
  const columns = { start: 16, end: 96 };
  const partial = await load(tensors, matrix([["o", 24, { start: 0, end: 24 }]], columns));
  expect(partial.format).toBe("dense");
  const values = new Float32Array(new Uint8Array(bytesOf(partial.data)).buffer);
  expect(values).toEqual(Float32Array.from(cut(o.values, { start: 0, end: 24 }, columns)));
});

test("a scale that is no finite number is refused by the tensor's name", async () => {
  const { stored } = blocks("Q8_0", 16);
  stored.data.set([0, 0x7c], 34 * 5);
  const loading = load({ "blk.0.attn_v.weight": stored }, matrix([["v", 16, { start: 0, end: 16 }]], ALL));
  const error = await loading.catch((reason) => reason);
  expect(error).toBeInstanceOf(ModelDataError);
  expect(error.message).toContain('tensor "blk.0.attn_v.weight" has a scale that is no finite number');
});
