import { narrow } from "../../../src/base/dtype.ts";
import { FLOAT8_VALUES } from "../../../src/base/float8.ts";
import type { Random } from "../../contract/random.ts";
import type { TensorData } from "../loader/support.ts";

/** A matrix [N, K] as a format stores it, and the numbers that it stands for. */
export interface StoredLayout {
  readonly tensors: Readonly<Record<string, TensorData>>;
  readonly values: Float32Array;
}

export type MakeLayout = (random: Random, n: number, k: number) => StoredLayout;

type Element = (row: number, column: number) => number;

/** Words [rows, columns] of `bits` codes each, little end first, of a matrix of codes of which neighbours are in one word. */
function words(
  [rows, columns]: readonly [number, number],
  bits: number,
  code: (row: number, column: number, place: number) => number,
): TensorData {
  const data = new Int32Array(rows * columns);
  for (let i = 0; i < data.length; i++) {
    for (let place = 0; place < 32 / bits; place++)
      data[i]! |= code(Math.floor(i / columns), i % columns, place) << (bits * place);
  }
  return { dtype: "I32", shape: [rows, columns], data };
}

function float16(shape: readonly [number, number], element: Element): TensorData {
  const values = tabulate(shape, element);
  return { dtype: "F16", shape, data: narrow(values, "float16") };
}

function tabulate([rows, columns]: readonly [number, number], element: Element): Float32Array {
  return Float32Array.from({ length: rows * columns }, (_, i) =>
    element(Math.floor(i / columns), i % columns),
  );
}

interface Groups {
  readonly code: Element;
  readonly scale: Element;
  readonly zero: Element;
}

/** Random codes, scales that are powers of two, and zero points from 0 on. */
function groups(random: Random, n: number, k: number, bits: number, group: number): Groups {
  const count = k / group;
  const codes = Uint8Array.from({ length: n * k }, () => random.int(2 ** bits));
  const scales = Float32Array.from({ length: n * count }, () => 2 ** -random.int(9));
  const zeros = Uint8Array.from({ length: n * count }, () => random.int(2 ** bits));
  return {
    code: (row, column) => codes[row * k + column]!,
    scale: (row, index) => scales[row * count + index]!,
    zero: (row, index) => zeros[row * count + index]!,
  };
}

const AWQ_PLACES = [0, 2, 4, 6, 1, 3, 5, 7];

export function awq(group: number): MakeLayout {
  return (random, n, k) => {
    const { code, scale, zero } = groups(random, n, k, 4, group);
    const of = (element: Element) => (row: number, column: number, place: number) =>
      element(8 * column + AWQ_PLACES[place]!, row);
    return {
      tensors: {
        qweight: words([k, n / 8], 4, of(code)),
        qzeros: words([k / group, n / 8], 4, of(zero)),
        scales: float16([k / group, n], (index, row) => scale(row, index)),
      },
      values: tabulate([n, k], (row, column) => {
        const index = Math.floor(column / group);
        return (code(row, column) - zero(row, index)) * scale(row, index);
      }),
    };
  };
}

export interface GptqForm {
  readonly bits: 4 | 8;
  readonly group: number;
  readonly version: "v1" | "v2";
  /** The group of each column. Default: neighbours. */
  readonly groupOf?: (column: number) => number;
}

export function gptq({ bits, group, version, groupOf }: GptqForm): MakeLayout {
  return (random, n, k) => {
    const { code, scale, zero } = groups(random, n, k, bits, group);
    const perWord = 32 / bits;
    const indexOf = groupOf ?? ((column: number) => Math.floor(column / group));
    const stored: Element = (row, index) =>
      (zero(row, index) + (version === "v1" ? 2 ** bits - 1 : 0)) % 2 ** bits;
    return {
      tensors: {
        qweight: words([k / perWord, n], bits, (row, column, place) => code(column, row * perWord + place)),
        qzeros: words([k / group, n / perWord], bits, (index, column, place) =>
          stored(column * perWord + place, index),
        ),
        scales: float16([k / group, n], (index, row) => scale(row, index)),
        g_idx: {
          dtype: "I32",
          shape: [k],
          data: Int32Array.from({ length: k }, (_, column) => indexOf(column)),
        },
      },
      values: tabulate([n, k], (row, column) => {
        const index = indexOf(column);
        return (code(row, column) - zero(row, index)) * scale(row, index);
      }),
    };
  };
}

export function packed(bits: 4 | 8, group: number, symmetric: boolean): MakeLayout {
  return (random, n, k) => {
    const { code, scale, zero } = groups(random, n, k, bits, group);
    const perWord = 32 / bits;
    const zeroOf: Element = symmetric ? () => 2 ** (bits - 1) : zero;
    return {
      tensors: {
        weight_packed: words([n, k / perWord], bits, (row, column, place) =>
          code(row, column * perWord + place),
        ),
        weight_scale: float16([n, k / group], scale),
        weight_shape: { dtype: "I64", shape: [2], data: BigInt64Array.of(BigInt(n), BigInt(k)) },
        ...(!symmetric && {
          weight_zero_point: words([Math.ceil(n / perWord), k / group], bits, (row, index, place) =>
            row * perWord + place < n ? zero(row * perWord + place, index) : 0,
          ),
        }),
      },
      values: tabulate([n, k], (row, column) => {
        const index = Math.floor(column / group);
        return (code(row, column) - zeroOf(row, index)) * scale(row, index);
      }),
    };
  };
}

export function int8(): MakeLayout {
  return (random, n, k) => {
    const codes = Int8Array.from({ length: n * k }, () => random.int(256) - 128);
    const scale = float16([n, 1], () => 2 ** -random.int(9));
    const scales = new Float16Array((scale.data as Uint8Array).buffer);
    return {
      tensors: { weight: { dtype: "I8", shape: [n, k], data: codes }, weight_scale: scale },
      values: tabulate([n, k], (row, column) => codes[row * k + column]! * scales[row]!),
    };
  };
}

/** Of blocks of 128 × 128, a channel each, or the tensor. */
/** @param isModelOpt extents of 1 lie between those of the blocks' factors */
export function float8(granularity: "block" | "channel" | "tensor", isModelOpt = false): MakeLayout {
  return (random, n, k) => {
    const codes = Uint8Array.from({ length: n * k }, () => {
      const code = random.int(256);
      return (code & 0x7f) === 0x7f ? code - 1 : code;
    });
    const rows = { block: 128, channel: 1, tensor: n }[granularity];
    const columns = granularity === "block" ? 128 : k;
    const shape = [Math.ceil(n / rows), Math.ceil(k / columns)] as const;
    const scales = Float32Array.from({ length: shape[0] * shape[1] }, () => 2 ** -random.int(9));
    const name = granularity === "block" && !isModelOpt ? "weight_scale_inv" : "weight_scale";
    const storedShape = isModelOpt ? [shape[0], 1, shape[1], 1] : shape;
    return {
      tensors: {
        weight: { dtype: "F8_E4M3", shape: [n, k], data: codes },
        [name]: { dtype: "F32", shape: granularity === "tensor" ? [] : storedShape, data: scales },
      },
      values: tabulate([n, k], (row, column) => {
        const scale = scales[Math.floor(row / rows) * shape[1] + Math.floor(column / columns)]!;
        return FLOAT8_VALUES[codes[row * k + column]!]! * scale;
      }),
    };
  };
}
