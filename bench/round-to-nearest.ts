/**
 * A model folder with its matrices rounded to the nearest codes, as compressed-tensors stores them: the plainest way to quantise, without
 * looking at any text. For measuring what a format costs; who quantises for use does better.
 */
import { cpSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { narrow, widen } from "../src/base/dtype.ts";
import { readFully } from "../src/base/read-fully.ts";
import { Checkpoint } from "../src/loader/checkpoint.ts";

export interface RoundingForm {
  readonly bits: 4 | 8;
  /** Columns of a group; undefined: all of a row. */
  readonly groupSize?: number;
  /** Zero points are in the middle. */
  readonly symmetric: boolean;
}

interface Stored {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly data: Uint8Array;
}

/** Shares of a group's range that are tried: a smaller one rounds most weights better and cuts off the largest. */
const SHRINKS = Array.from({ length: 16 }, (_, i) => 1 - i / 40);

/** Writes the model of `folder`, whose weights are BF16, to `target`. Embeddings, norms and the LM head stay as they are. */
export function roundModel(folder: string, target: string, form: RoundingForm): void {
  mkdirSync(target, { recursive: true });
  for (const name of readdirSync(folder))
    if (name.endsWith(".json")) cpSync(join(folder, name), join(target, name));
  const config = JSON.parse(readFileSync(join(folder, "config.json"), "utf8"));
  const quantization_config = compressedConfig(form);
  writeFileSync(join(target, "config.json"), JSON.stringify({ ...config, quantization_config }));

  using checkpoint = Checkpoint.open(folder);
  const tensors: Record<string, Stored> = {};
  for (const [name, { dtype, shape, begin, end, file }] of checkpoint.tensors) {
    const data = new Uint8Array(end - begin);
    readFully(file.path, file.fd, data, begin);
    const source = name.match(/^(.*_proj)\.weight$/)?.[1];
    if (source === undefined) tensors[name] = { dtype, shape, data };
    else Object.assign(tensors, roundMatrix(source, shape as [number, number], data, form));
  }
  writeSafetensors(join(target, "model.safetensors"), tensors);
}

function compressedConfig({ bits, groupSize, symmetric }: RoundingForm): object {
  const groups =
    groupSize === undefined ? { strategy: "channel" } : { strategy: "group", group_size: groupSize };
  const weights = { num_bits: bits, type: "int", symmetric, ...groups };
  return {
    ...{ quant_method: "compressed-tensors", format: "pack-quantized", quantization_status: "compressed" },
    ...{ ignore: ["lm_head"], config_groups: { group_0: { targets: ["Linear"], weights } } },
  };
}

function roundMatrix(
  source: string,
  [n, k]: readonly [number, number],
  data: Uint8Array,
  { bits, groupSize = k, symmetric }: RoundingForm,
): Record<string, Stored> {
  const values = new Float32Array(n * k);
  widen(data, "bfloat16", values);
  const groups = k / groupSize;
  const codes = new Uint8Array(n * k);
  const scales = new Float32Array(n * groups);
  const zeros = new Uint8Array(n * groups);
  for (let group = 0; group < scales.length; group++) {
    const [start, end] = [group * groupSize, (group + 1) * groupSize];
    const { scale, zero } = roundGroup(
      values.subarray(start, end),
      bits,
      symmetric,
      codes.subarray(start, end),
    );
    scales[group] = scale;
    zeros[group] = zero;
  }
  const perWord = 32 / bits;
  return {
    [`${source}.weight_packed`]: { dtype: "I32", shape: [n, k / perWord], data: packed(codes, bits) },
    [`${source}.weight_scale`]: { dtype: "F16", shape: [n, groups], data: narrow(scales, "float16") },
    [`${source}.weight_shape`]: {
      ...{ dtype: "I64", shape: [2], data: new Uint8Array(BigInt64Array.of(BigInt(n), BigInt(k)).buffer) },
    },
    ...(!symmetric && {
      [`${source}.weight_zero_point`]: {
        ...{ dtype: "I32", shape: [Math.ceil(n / perWord), groups] },
        data: packedDown(zeros, n, groups, bits),
      },
    }),
  };
}

/** Writes the codes of a group, with the scale and the zero point of the least squared error among those tried. */
function roundGroup(values: Float32Array, bits: number, symmetric: boolean, codes: Uint8Array) {
  const most = 2 ** bits - 1;
  const middle = 2 ** (bits - 1);
  let [low, high] = [0, 0];
  for (let i = 0; i < values.length; i++) {
    low = Math.min(low, values[i]!);
    high = Math.max(high, values[i]!);
  }
  let best = { error: Infinity, scale: 1, zero: middle };
  for (const shrink of SHRINKS) {
    const range = symmetric ? Math.max(-low, high) / (middle - 0.5) : (high - low) / most;
    const scale = Math.fround(new Float16Array([range * shrink])[0]!);
    if (scale === 0) continue;
    const zero = symmetric ? middle : Math.min(most, Math.max(0, Math.round((-low * shrink) / scale)));
    let error = 0;
    for (let i = 0; i < values.length; i++) {
      const code = Math.min(most, Math.max(0, Math.round(values[i]! / scale) + zero));
      error += ((code - zero) * scale - values[i]!) ** 2;
    }
    if (error < best.error) best = { error, scale, zero };
  }
  const { scale, zero } = best;
  for (let i = 0; i < values.length; i++)
    codes[i] = Math.min(most, Math.max(0, Math.round(values[i]! / scale) + zero));
  return best;
}

/** Codes that follow one another, in words. */
function packed(codes: Uint8Array, bits: number): Uint8Array {
  if (bits === 8) return codes;
  return Uint8Array.from({ length: codes.length / 2 }, (_, i) => codes[2 * i]! | (codes[2 * i + 1]! << 4));
}

/** Codes of [rows, columns] that are below one another, in words. */
function packedDown(codes: Uint8Array, rows: number, columns: number, bits: number): Uint8Array {
  const perWord = 32 / bits;
  const words = new Uint32Array(Math.ceil(rows / perWord) * columns);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++)
      words[Math.floor(row / perWord) * columns + column]! |=
        codes[row * columns + column]! << (bits * (row % perWord));
  }
  return new Uint8Array(words.buffer);
}

function writeSafetensors(path: string, tensors: Readonly<Record<string, Stored>>): void {
  let end = 0;
  const entries = Object.entries(tensors).map(([name, { dtype, shape, data }]) => {
    const start = end;
    end += data.length;
    return [name, { dtype, shape, data_offsets: [start, end] }] as const;
  });
  const header = Buffer.from(JSON.stringify(Object.fromEntries(entries)));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  writeFileSync(path, Buffer.concat([length, header, ...Object.values(tensors).map(({ data }) => data)]));
}
