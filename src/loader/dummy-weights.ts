import type { Backend } from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import { dtypeSize, type FloatDType, narrow } from "../base/dtype.ts";
import type { ParameterSpec } from "../base/parameter-spec.ts";

const STANDARD_DEVIATION = 0.02;
/** Elements of one upload. */
const SLICE = 2 ** 20;

/**
 * Random weights for `loadFormat: "dummy"`, the same for the same names, shapes, dtype and seed. To be fast for
 * billions of parameters, `normal` ones (mean 0, standard deviation 0.02) are slices, at pseudo-random offsets, of one
 * block of 2 M values: neighbours look independent, the whole is not. Fit for benchmarks and tests of the machinery,
 * not for statistics.
 */
export function dummyWeights(
  specs: readonly ParameterSpec[],
  backend: Backend,
  dtype: FloatDType,
  seed: number,
): Map<string, Tensor> {
  const bytesPerElement = dtypeSize(dtype);
  const ones = narrow(new Float32Array(SLICE).fill(1), dtype);
  const normal = narrow(normalValues(2 * SLICE, seed), dtype);

  const weights = new Map<string, Tensor>();
  for (const spec of specs) {
    const parameter = backend.empty(dtype, spec.shape);
    weights.set(spec.name, parameter);
    if (spec.dummy === "zeros") {
      backend.fill(parameter, 0);
      continue;
    }
    const elements = parameter.reshape(parameter.size);
    const random = generator(Bun.hash.xxHash32(`${seed} ${spec.name}`));
    for (let at = 0; at < parameter.size; at += SLICE) {
      const end = Math.min(at + SLICE, parameter.size);
      const offset = spec.dummy === "normal" ? Math.floor(random() * SLICE) : 0;
      const block = spec.dummy === "normal" ? normal : ones;
      const from = offset * bytesPerElement;
      backend.upload(elements.rows(at, end), block.subarray(from, from + (end - at) * bytesPerElement));
    }
  }
  return weights;
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
