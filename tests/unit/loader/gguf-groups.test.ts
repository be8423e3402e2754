import { expect, setDefaultTimeout, test } from "bun:test";
import { writeFileSync } from "node:fs";
import type { Tensor } from "../../../src/backend/tensor.ts";
import type { GroupedWeight, Weight } from "../../../src/backend/weight.ts";
import { ModelDataError } from "../../../src/base/errors.ts";
import type { ParameterSpec } from "../../../src/base/parameter-spec.ts";
import type { Span } from "../../../src/base/shard.ts";
import { blockOf, dequantize } from "../../../src/gguf/dequantize.ts";
import { ParameterList } from "../../../src/layers/parameters.ts";
import { StoredScheme, type StoredSchemeOptions } from "../../../src/layers/schemes/stored-scheme.ts";
import type { MatrixSpec } from "../../../src/layers/weight-scheme.ts";
import { Checkpoint } from "../../../src/loader/checkpoint.ts";
import { directoryOf } from "../../../src/loader/tensor-directory.ts";
import { loadWeights } from "../../../src/loader/weights.ts";
import { Random } from "../../contract/random.ts";
import { gguf, type TensorInput, type Value } from "../../gguf-writer.ts";
import { temporaryFolder } from "../../support.ts";
import { bytesOf, FakeBackend } from "./fake-backend.ts";

setDefaultTimeout(300_000);

const IDS = { Q4_0: 2, Q8_0: 8 } as const;
type Type = keyof typeof IDS;
const [COLUMNS, HEAD] = [192, 8];
const SELF = "model.layers.0.self_attn";
const LLAMA: Record<string, Value> = {
  "general.architecture": "llama",
  "llama.attention.head_count": 4,
  "llama.attention.head_count_kv": 2,
};

/** Blocks of random codes and scales, each another one. */
function blocks(type: Type, rows: number): { readonly stored: TensorInput; readonly values: Float32Array } {
  const { elements, bytes } = blockOf(type);
  const random = new Random(rows);
  const data = Uint8Array.from({ length: ((rows * COLUMNS) / elements) * bytes }, () => random.int(256));
  for (let at = 0; at < data.length; at += bytes)
    data.set(new Uint8Array(Float16Array.of(random.uniform() - 0.5).buffer), at);
  const values = new Float32Array(rows * COLUMNS);
  dequantize(data, type, values);
  return { stored: { type: IDS[type], shape: [rows, COLUMNS], data }, values };
}

/** Rows of heads in the order of a checkpoint, of those that are stored in pairs. */
function unpaired(values: Float32Array): Float32Array {
  const result = new Float32Array(values.length);
  for (let row = 0; row < values.length / COLUMNS; row++) {
    const [head, inHead] = [row - (row % HEAD), row % HEAD];
    const stored = head + 2 * (inHead % (HEAD / 2)) + (inHead < HEAD / 2 ? 0 : 1);
    result.set(values.subarray(stored * COLUMNS, (stored + 1) * COLUMNS), row * COLUMNS);
  }
  return result;
}

function matrix(parts: [name: string, rows: number, span: Span][], columnSpan: Span): MatrixSpec {
  return {
    ...{ name: "m", columns: COLUMNS, columnSpan },
    parts: parts.map(([name, rows, rowSpan]) => ({ source: `${SELF}.${name}_proj`, rows, rowSpan })),
  };
}

/** The weight that the scheme makes of a file. */
async function load(
  tensors: Record<string, TensorInput>,
  spec: MatrixSpec,
  options: StoredSchemeOptions = {},
): Promise<Weight> {
  using folder = temporaryFolder();
  writeFileSync(folder.file("m.gguf"), gguf({ metadata: LLAMA, tensors }));
  using checkpoint = Checkpoint.open(folder.file("m.gguf"));
  const scheme = new StoredScheme(directoryOf(checkpoint), options);
  const list = new ParameterList({ rank: 0, size: 1 }, scheme);
  list.weight(spec);
  const loading = { dtype: "float32", ignored: [/./] } as const;
  const loaded = await loadWeights(checkpoint, list.specs, new FakeBackend().backend, loading);
  return scheme.weight(spec, ({ name }: ParameterSpec): Tensor => loaded.get(name)!);
}

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

/** Values of rows and columns, one row after another. */
function cut(values: Float32Array, rows: Span, columns: Span): number[] {
  const count = rows.end - rows.start;
  return Array.from({ length: count }, (_, i) => (rows.start + i) * COLUMNS).flatMap((row) => [
    ...values.subarray(row + columns.start, row + columns.end),
  ]);
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
