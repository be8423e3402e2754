import type { Backend } from "../backend/backend.ts";
import { Tensor } from "../backend/tensor.ts";
import { type DType, dtypeSize, type FloatDType, narrow } from "../base/dtype.ts";
import { encodeFloat8 } from "../base/float8.ts";
import type { ParameterSpec } from "../base/parameter-spec.ts";

const STANDARD_DEVIATION = 0.02;
/** Values that a matrix is pieced together from: so many rows, and elements of a row. */
const ROW_BITS = 13;
const ROWS = 2 ** ROW_BITS;
const WIDTH = 2 ** 8;
/** Different values among them: about as many as 16 bits tell apart at that size. */
const DISTINCT_BITS = 14;
const DISTINCT = 2 ** DISTINCT_BITS;
/** Rows that are copied at a time. */
const SLICE_ROWS = 2 ** 18;

/**
 * Random weights for `loadFormat: "dummy"`, the same for the same names, shapes, dtype and seed. To be fast for
 * billions of parameters, `normal` ones (mean 0, standard deviation 0.02) are pieced together on the device from the rows
 * of one table of 2 M values in pseudo-random order: neighbours look independent, the whole is not. Fit for benchmarks and
 * tests of the machinery, not for statistics.
 * Codes of float8 are the same of standard deviation 1, integers random bits.
 * @param dtype that of the backend's activations
 */
export function dummyWeights(
  specs: readonly ParameterSpec[],
  backend: Backend,
  dtype: FloatDType,
  seed: number,
): Map<string, Tensor> {
  const floatsOf = (own: FloatDType) => {
    const count = (ROWS * WIDTH * dtypeSize(dtype)) / dtypeSize(own);
    return new RandomTable(backend, dtype, () => narrow(normalValues(count, seed), own));
  };
  const tables = {
    ...{ float32: floatsOf("float32"), bfloat16: floatsOf("bfloat16"), float16: floatsOf("float16") },
    float8: new RandomTable(backend, dtype, () => normalCodes(ROWS * WIDTH * dtypeSize(dtype), seed)),
    bits: new RandomTable(backend, dtype, () => randomBytes(ROWS * WIDTH * dtypeSize(dtype), seed)),
  };
  try {
    const weights = new Map<string, Tensor>();
    for (const spec of specs) {
      const parameter = backend.empty(spec.dtype ?? dtype, spec.shape);
      weights.set(spec.name, parameter);
      const { dummy } = spec;
      if (dummy === "zeros") backend.fill(parameter, 0);
      else if (dummy !== "normal")
        backend.upload(parameter, constant(parameter, dummy === "ones" ? 1 : dummy));
      else tables[contentsOf(parameter.dtype)].fill(parameter, Bun.hash.xxHash32(`${seed} ${spec.name}`));
    }
    return weights;
  } finally {
    for (const table of Object.values(tables)) table.dispose();
  }
}

function contentsOf(dtype: DType): FloatDType | "float8" | "bits" {
  if (dtype === "uint8") return "bits";
  return dtype === "float8_e4m3" ? "float8" : (dtype as FloatDType);
}

/** The bytes of a tensor whose elements are all `value`. */
function constant({ dtype, size }: Tensor, value: number): Uint8Array {
  if (dtype === "uint8") return new Uint8Array(size).fill(value);
  return narrow(new Float32Array(size).fill(value), dtype as FloatDType);
}

/**
 * Random bytes on the host, made when they are first asked for, and on the device once something large is filled with them, where they count
 * as elements of `dtype`, which `gatherRows` copies.
 */
class RandomTable {
  #bytes: Uint8Array | undefined;
  #table: Tensor | undefined;
  #rows: Tensor | undefined;

  constructor(
    private readonly backend: Backend,
    private readonly dtype: FloatDType,
    private readonly create: () => Uint8Array,
  ) {}

  get #values(): Uint8Array {
    this.#bytes ??= this.create();
    return this.#bytes;
  }

  fill(target: Tensor, seed: number): void {
    const { buffer, byteOffset, byteLength } = target;
    const rowBytes = WIDTH * dtypeSize(this.dtype);
    const whole = Math.floor(byteLength / rowBytes);
    const elements = new Tensor(buffer, this.dtype, [whole * WIDTH], byteOffset);
    const words = randomWords(whole + 1, seed);
    for (let at = 0; at < whole; at += SLICE_ROWS) {
      const count = Math.min(SLICE_ROWS, whole - at);
      const slice = elements.rows(at * WIDTH, (at + count) * WIDTH).reshape(count, WIDTH);
      const numbers = new Int32Array(count);
      for (let i = 0; i < count; i++) numbers[i] = words[at + i]! >>> (32 - ROW_BITS);
      this.#copyRows(slice, numbers);
    }
    const rest = byteLength - whole * rowBytes;
    if (rest === 0) return;
    const from = (words[whole]! >>> (32 - ROW_BITS)) * rowBytes;
    const bytes = new Tensor(buffer, "uint8", [rest], byteOffset + whole * rowBytes);
    this.backend.upload(bytes, this.#values.subarray(from, from + rest));
  }

  dispose(): void {
    for (const tensor of [this.#table, this.#rows]) tensor?.buffer.dispose();
  }

  #copyRows(target: Tensor, numbers: Int32Array): void {
    const { backend } = this;
    if (this.#table === undefined) {
      this.#table = backend.empty(this.dtype, [ROWS, WIDTH]);
      backend.upload(this.#table, this.#values);
    }
    this.#rows ??= backend.empty("int32", [SLICE_ROWS]);
    const rows = this.#rows.rows(0, numbers.length);
    backend.upload(rows, numbers);
    backend.gatherRows(target, this.#table, rows);
  }
}

/** Draws, with replacement, out of Gaussian values by the Box–Muller transform: a transform for each takes twice as long. */
function normalValues(count: number, seed: number): Float32Array {
  const words = randomWords(DISTINCT / 2 + count, Bun.hash.xxHash32(`${seed}`));
  const distinct = new Float32Array(DISTINCT);
  // With each value its opposite, and a radius in each part of the distribution: mean and deviation are right.
  for (let i = 0; i < DISTINCT; i += 4) {
    const radius =
      STANDARD_DEVIATION * Math.sqrt(-2 * Math.log(1 - (i / 4 + words[i / 2]! / 2 ** 32) / (DISTINCT / 4)));
    const angle = 2 * Math.PI * (words[i / 2 + 1]! / 2 ** 32);
    const [x, y] = [radius * Math.cos(angle), radius * Math.sin(angle)];
    distinct.set([x, y, -x, -y], i);
  }
  return draws(distinct, words.subarray(DISTINCT / 2));
}

/** One of the values for each word: a loop by itself, which is compiled as soon as it runs. */
function draws(distinct: Float32Array, words: Uint32Array): Float32Array {
  const values = new Float32Array(words.length);
  for (let i = 0; i < values.length; i++) values[i] = distinct[words[i]! >>> (32 - DISTINCT_BITS)]!;
  return values;
}

/** The same in float8, of standard deviation 1. */
function normalCodes(count: number, seed: number): Uint8Array {
  const codes = new Uint8Array(count);
  encodeFloat8(normalValues(count, seed), 1 / STANDARD_DEVIATION, codes);
  return codes;
}

function randomBytes(count: number, seed: number): Uint8Array {
  const words = randomWords(count, Bun.hash.xxHash32(`${seed} bits`));
  const bytes = new Uint8Array(count);
  for (let i = 0; i < count; i++) bytes[i] = words[i]! >>> 24;
  return bytes;
}

/** Uniform words of 32 bits: a Weyl sequence through the finaliser of MurmurHash3. */
function randomWords(count: number, seed: number): Uint32Array {
  const words = new Uint32Array(count);
  for (let i = 0, state = seed; i < count; i++) {
    state = (state + 0x9e3779b9) | 0;
    let z = state;
    z = Math.imul(z ^ (z >>> 16), 0x85ebca6b);
    z = Math.imul(z ^ (z >>> 13), 0xc2b2ae35);
    words[i] = z ^ (z >>> 16);
  }
  return words;
}
