import { type FloatDType, widen } from "../../base/dtype.ts";
import { FLOAT8_VALUES } from "../../base/float8.ts";
import type { Tensor } from "../tensor.ts";
import {
  type DenseWeight,
  type Fp8Weight,
  factorsOf,
  type GroupedWeight,
  MXFP4_GROUP,
  type Mxfp4Weight,
  SUPERBLOCK,
  SUPERBLOCK_MIDDLE,
  type SuperblockWeight,
  type Weight,
} from "../weight.ts";
import { bytes, floats, ints } from "./host-buffer.ts";

/** A weight [N, K] in host memory, which becomes float32 some rows at a time. */
export interface RowSource {
  /** Writes rows [start, end) to the beginning of `target`, as `Weight` defines them; products are rounded to float32 once. */
  dequantise(target: Float32Array, start: number, end: number): void;
}

/** The rows of a weight. */
export function rowsOf(weight: Weight): RowSource {
  if (weight.format === "dense") return new DenseRows(weight);
  if (weight.format === "mxfp4") return new Mxfp4Rows(weight);
  if (weight.format === "superblocks") return new SuperblockRows(weight);
  return weight.format === "fp8" ? new Fp8Rows(weight) : new GroupedRows(weight);
}

class DenseRows implements RowSource {
  readonly #bytes: Uint8Array;
  readonly #rowBytes: number;

  constructor(private readonly weight: DenseWeight) {
    this.#bytes = bytes(weight.data);
    this.#rowBytes = this.#bytes.length / weight.shape[0];
  }

  dequantise(target: Float32Array, start: number, end: number): void {
    const { data, shape } = this.weight;
    const rows = this.#bytes.subarray(start * this.#rowBytes, end * this.#rowBytes);
    widen(rows, data.dtype as FloatDType, target.subarray(0, (end - start) * shape[1]));
  }
}

/** What the low bits of e2m1 stand for. */
const E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6];

class Mxfp4Rows implements RowSource {
  readonly #codes: Uint8Array;
  readonly #scales: Uint8Array;

  constructor(private readonly weight: Mxfp4Weight) {
    this.#codes = bytes(weight.data);
    this.#scales = bytes(weight.scales);
  }

  dequantise(target: Float32Array, start: number, end: number): void {
    const k = this.weight.shape[1];
    const first = start * k;
    for (let at = first; at < end * k; at += MXFP4_GROUP) {
      const scale = 2 ** (this.#scales[at / MXFP4_GROUP]! - 127);
      for (let i = at; i < at + MXFP4_GROUP; i += 2) {
        const byte = this.#codes[i / 2]!;
        target[i - first] = e2m1(byte & 15) * scale;
        target[i - first + 1] = e2m1(byte >> 4) * scale;
      }
    }
  }
}

function e2m1(code: number): number {
  const magnitude = E2M1[code & 7]!;
  return code & 8 ? -magnitude : magnitude;
}

class Fp8Rows implements RowSource {
  readonly #codes: Uint8Array;
  readonly #scales: Float32Array;

  constructor(private readonly weight: Fp8Weight) {
    this.#codes = bytes(weight.data);
    this.#scales = floats(weight.scales);
  }

  dequantise(target: Float32Array, start: number, end: number): void {
    const { shape, blockRows, blockColumns } = this.weight;
    const k = shape[1];
    const scalesOfRow = Math.ceil(k / blockColumns);
    for (let row = start, out = 0; row < end; row++) {
      const scaleRow = Math.floor(row / blockRows) * scalesOfRow;
      for (let block = 0; block < scalesOfRow; block++) {
        const scale = this.#scales[scaleRow + block]!;
        const first = row * k + block * blockColumns;
        const last = Math.min(first + blockColumns, (row + 1) * k);
        for (let i = first; i < last; i++, out++) target[out] = FLOAT8_VALUES[this.#codes[i]!]! * scale;
      }
    }
  }
}

class GroupedRows implements RowSource {
  readonly #codes: Uint8Array;
  readonly #scales: Float32Array | Float16Array;
  readonly #zeros: Uint8Array | undefined;
  readonly #permutation: Int32Array | undefined;

  constructor(private readonly weight: GroupedWeight) {
    this.#codes = bytes(weight.data);
    this.#scales = shortFloats(weight.scales);
    this.#zeros = weight.zeros && bytes(weight.zeros);
    this.#permutation = weight.permutation && ints(weight.permutation);
  }

  dequantise(target: Float32Array, start: number, end: number): void {
    const { shape, bits, groupSize } = this.weight;
    const k = shape[1];
    const groups = k / groupSize;
    const row = this.#permutation === undefined ? undefined : new Float32Array(k);
    for (let n = start; n < end; n++) {
      const out = row ?? target.subarray((n - start) * k, (n - start + 1) * k);
      for (let group = 0; group < groups; group++) {
        const scale = this.#scales[n * groups + group]!;
        const zero = this.#zeros?.[n * groups + group] ?? 2 ** (bits - 1);
        const [first, last] = [group * groupSize, (group + 1) * groupSize];
        if (bits === 4) this.#nibbles(out, (n * k) / 2, first, last, zero, scale);
        else for (let j = first; j < last; j++) out[j] = (this.#codes[n * k + j]! - zero) * scale;
      }
      if (row !== undefined)
        for (let j = 0; j < k; j++) target[(n - start) * k + this.#permutation![j]!] = row[j]!;
    }
  }

  #nibbles(
    out: Float32Array,
    rowStart: number,
    first: number,
    last: number,
    zero: number,
    scale: number,
  ): void {
    for (let j = first; j < last; j += 2) {
      const byte = this.#codes[rowStart + j / 2]!;
      out[j] = ((byte & 15) - zero) * scale;
      out[j + 1] = ((byte >> 4) - zero) * scale;
    }
  }
}

class SuperblockRows implements RowSource {
  readonly #codes: Uint8Array;
  readonly #steps: Int8Array;
  readonly #units: Float32Array | Float16Array;

  constructor(private readonly weight: SuperblockWeight) {
    this.#codes = bytes(weight.data);
    const { buffer, byteOffset, length } = bytes(weight.steps);
    this.#steps = new Int8Array(buffer, byteOffset, length);
    this.#units = shortFloats(weight.units);
  }

  dequantise(target: Float32Array, start: number, end: number): void {
    const { shape, bits, groupSize, minima } = this.weight;
    const factors = factorsOf(this.weight);
    const first = start * shape[1];
    for (let at = first; at < end * shape[1]; at += groupSize) {
      const [step, unit] = [(at / groupSize) * factors, Math.floor(at / SUPERBLOCK) * factors];
      const scale = this.#steps[step]! * this.#units[unit]!;
      const minimum = minima ? this.#steps[step + 1]! * this.#units[unit + 1]! : scale * SUPERBLOCK_MIDDLE;
      for (let i = at; i < at + groupSize; i++) {
        const code = bits === 8 ? this.#codes[i]! : (this.#codes[i >> 1]! >> (4 * (i & 1))) & 15;
        target[i - first] = scale * code - minimum;
      }
    }
  }
}

/** 16-bit floats of host memory, as numbers. */
function shortFloats(tensor: Tensor): Float32Array | Float16Array {
  const { buffer, byteOffset, length } = bytes(tensor);
  if (tensor.dtype === "float16") return new Float16Array(buffer, byteOffset, length / 2);
  const from = new Uint16Array(buffer, byteOffset, length / 2);
  const to = new Uint32Array(from.length);
  for (let i = 0; i < from.length; i++) to[i] = from[i]! << 16;
  return new Float32Array(to.buffer);
}
