import { writeFileSync } from "node:fs";
import type { Tensor } from "../../../src/backend/tensor.ts";
import type { Weight } from "../../../src/backend/weight.ts";
import type { ParameterSpec } from "../../../src/base/parameter-spec.ts";
import type { Span } from "../../../src/base/shard.ts";
import { type BlockType, blockOf, dequantize } from "../../../src/gguf/dequantize.ts";
import { ParameterList } from "../../../src/layers/parameters.ts";
import { StoredScheme, type StoredSchemeOptions } from "../../../src/layers/schemes/stored-scheme.ts";
import type { MatrixSpec } from "../../../src/layers/weight-scheme.ts";
import { Checkpoint } from "../../../src/loader/checkpoint.ts";
import { directoryOf } from "../../../src/loader/tensor-directory.ts";
import { loadWeights } from "../../../src/loader/weights.ts";
import { Random } from "../../contract/random.ts";
import { gguf, type TensorInput, type Value } from "../../gguf-writer.ts";
import { temporaryFolder } from "../../support.ts";
import { FakeBackend } from "./fake-backend.ts";

/** Rows of a head of the models whose files are written here. */
export const HEAD = 8;

const IDS = { Q4_0: 2, Q8_0: 8, Q4_K: 12, Q5_K: 13, Q6_K: 14 } as const;
/** Where a block has its float16. */
const HALVES = { Q4_0: [0], Q8_0: [0], Q4_K: [0, 2], Q5_K: [0, 2], Q6_K: [208] } as const;
const SELF = "model.layers.0.self_attn";
const LLAMA: Record<string, Value> = {
  "general.architecture": "llama",
  "llama.attention.head_count": 4,
  "llama.attention.head_count_kv": 2,
};

/** A matrix in a file, and the floats that it stands for. */
export interface StoredBlocks {
  readonly stored: TensorInput;
  readonly values: Float32Array;
}

/** Blocks of random codes and scales, each another one. */
export function blocks(type: keyof typeof IDS & BlockType, rows: number, columns: number): StoredBlocks {
  const { elements, bytes } = blockOf(type);
  const random = new Random(rows);
  const data = Uint8Array.from({ length: ((rows * columns) / elements) * bytes }, () => random.int(256));
  for (let at = 0; at < data.length; at += bytes)
    for (const half of HALVES[type])
      data.set(new Uint8Array(Float16Array.of(random.uniform() - 0.5).buffer), at + half);
  const values = new Float32Array(rows * columns);
  dequantize(data, type, values);
  return { stored: { type: IDS[type], shape: [rows, columns], data }, values };
}

/** Rows of heads in the order of a checkpoint, of those that are stored in pairs. */
export function unpaired(values: Float32Array, columns: number): Float32Array {
  const result = new Float32Array(values.length);
  for (let row = 0; row < values.length / columns; row++) {
    const [head, inHead] = [row - (row % HEAD), row % HEAD];
    const stored = head + 2 * (inHead % (HEAD / 2)) + (inHead < HEAD / 2 ? 0 : 1);
    result.set(values.subarray(stored * columns, (stored + 1) * columns), row * columns);
  }
  return result;
}

/** Values of rows and columns, one row after another. */
export function cut(values: Float32Array, rows: Span, columns: Span, width: number): number[] {
  const count = rows.end - rows.start;
  return Array.from({ length: count }, (_, i) => (rows.start + i) * width).flatMap((row) => [
    ...values.subarray(row + columns.start, row + columns.end),
  ]);
}

/** A matrix of `width` columns, of which `columnSpan` is wanted. @param parts of a layer's attention, such as `q` */
export function matrix(
  parts: readonly [name: string, rows: number, span: Span][],
  columnSpan: Span,
  width: number,
): MatrixSpec {
  return {
    ...{ name: "m", columns: width, columnSpan },
    parts: parts.map(([name, rows, rowSpan]) => ({ source: `${SELF}.${name}_proj`, rows, rowSpan })),
  };
}

/** The weight that the scheme makes of a file, on a `FakeBackend`. */
export async function load(
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
