import type { Backend } from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import { dtypeSize, type FloatDType, narrow } from "../base/dtype.ts";
import type { ParameterSpec } from "../base/parameter-spec.ts";

const STANDARD_DEVIATION = 0.02;
/** Values that a matrix is pieced together from: so many rows, and elements of a row. */
const ROWS = 2 ** 13;
const WIDTH = 2 ** 8;
/** Rows that are copied at a time. */
const SLICE_ROWS = 2 ** 18;

/**
 * Random weights for `loadFormat: "dummy"`, the same for the same names, shapes, dtype and seed. To be fast for
 * billions of parameters, `normal` ones (mean 0, standard deviation 0.02) are pieced together on the device from the rows
 * of one table of 2 M values in pseudo-random order: neighbours look independent, the whole is not. Fit for benchmarks and
 * tests of the machinery, not for statistics.
 * @param dtype that of the backend's activations
 */
export function dummyWeights(
  specs: readonly ParameterSpec[],
  backend: Backend,
  dtype: FloatDType,
  seed: number,
): Map<string, Tensor> {
  const source = new RandomTable(backend, dtype, seed);
  try {
    const weights = new Map<string, Tensor>();
    for (const spec of specs) {
      const parameter = backend.empty(dtype, spec.shape);
      weights.set(spec.name, parameter);
      if (spec.dummy === "zeros") backend.fill(parameter, 0);
      else if (spec.dummy === "ones")
        backend.upload(parameter, narrow(new Float32Array(parameter.size).fill(1), dtype));
      else source.fill(parameter, Bun.hash.xxHash32(`${seed} ${spec.name}`));
    }
    return weights;
  } finally {
    source.dispose();
  }
}

/** Normal values on the host, and on the device once something large is filled with them. */
class RandomTable {
  readonly #values: Uint8Array;
  #table: Tensor | undefined;
  #rows: Tensor | undefined;

  constructor(
    private readonly backend: Backend,
    private readonly dtype: FloatDType,
    seed: number,
  ) {
    this.#values = narrow(normalValues(ROWS * WIDTH, seed), dtype);
  }

  fill(target: Tensor, seed: number): void {
    const random = generator(seed);
    const draw = () => Math.floor(random() * ROWS);
    const elements = target.reshape(target.size);
    const whole = Math.floor(target.size / WIDTH);
    for (let at = 0; at < whole; at += SLICE_ROWS) {
      const count = Math.min(SLICE_ROWS, whole - at);
      const slice = elements.rows(at * WIDTH, (at + count) * WIDTH).reshape(count, WIDTH);
      const numbers = new Int32Array(count);
      for (let i = 0; i < count; i++) numbers[i] = draw();
      this.#copyRows(slice, numbers);
    }
    const rest = elements.rows(whole * WIDTH, target.size);
    if (rest.size === 0) return;
    const rowBytes = WIDTH * dtypeSize(this.dtype);
    const from = draw() * rowBytes;
    this.backend.upload(rest, this.#values.subarray(from, from + rest.byteLength));
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

/** Gaussian values by the Box–Muller transform. */
function normalValues(count: number, seed: number): Float32Array {
  const random = generator(Bun.hash.xxHash32(`${seed}`));
  const values = new Float32Array(count);
  for (let i = 0; i < count; i += 2) {
    const radius = STANDARD_DEVIATION * Math.sqrt(-2 * Math.log(1 - random()));
    const angle = 2 * Math.PI * random();
    values[i] = radius * Math.cos(angle);
    values[i + 1] = radius * Math.sin(angle);
  }
  return values;
}

/** Uniform numbers in [0, 1): a 32-bit Weyl sequence through the finaliser of MurmurHash3. */
function generator(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x9e3779b9) | 0;
    let z = state;
    z = Math.imul(z ^ (z >>> 16), 0x85ebca6b);
    z = Math.imul(z ^ (z >>> 13), 0xc2b2ae35);
    return ((z ^ (z >>> 16)) >>> 0) / 2 ** 32;
  };
}
