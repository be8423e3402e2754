import { expect } from "bun:test";
import type { CudaBackend } from "../../../../src/backend/cuda/cuda-backend.ts";
import type { QuantisedWeight } from "../../../../src/backend/cuda/ops/quantised-form.ts";
import type { Tensor } from "../../../../src/backend/tensor.ts";
import type { Fp8Weight, GroupedWeight, SuperblockWeight } from "../../../../src/backend/weight.ts";
import type { DType } from "../../../../src/base/dtype.ts";
import { FakeTensors } from "./fake-tensors.ts";

/** Makers of quantised weights on a backend of the fake driver, unless they are given another. */
export function fakeWeights(backend: CudaBackend) {
  const { f32 } = new FakeTensors();

  /** Tensors of a weight: some are copied, so there must be memory behind them. */
  function memory(on: CudaBackend, dtype: DType, ...shape: number[]): Tensor {
    return on.empty(dtype, shape);
  }

  function fp8(n: number, k: number, { blockRows = 1, on = backend } = {}): Fp8Weight {
    const blockColumns = blockRows === 1 ? k : 128;
    const scales = f32(Math.ceil(n / blockRows), Math.ceil(k / blockColumns));
    const data = memory(on, "float8_e4m3", n, k);
    return { format: "fp8", shape: [n, k], data, scales, blockRows, blockColumns };
  }

  function grouped(
    n: number,
    k: number,
    groupSize: number,
    { on = backend, ...options }: Partial<GroupedWeight> & { readonly on?: CudaBackend } = {},
  ): GroupedWeight {
    const { bits = 4 } = options;
    return {
      ...{ format: "grouped", shape: [n, k], bits, groupSize },
      ...{ data: memory(on, "uint8", n, (k * bits) / 8) },
      ...{ scales: memory(on, "float16", n, k / groupSize), ...options },
    };
  }

  /** Q4_K's form. */
  function superblocks(n: number, k: number, on = backend): SuperblockWeight {
    return {
      ...{ format: "superblocks", shape: [n, k], bits: 4, groupSize: 32, minima: true },
      data: memory(on, "uint8", n, k / 2),
      steps: memory(on, "uint8", n, k / 32, 2),
      units: memory(on, "float16", n, k / 256, 2),
    };
  }

  /** The weight in the backend's order, whose launches are not counted. */
  function prepared<W extends QuantisedWeight>(weight: W, on = backend): W {
    expect(on.prepareWeight(weight)).toBe(weight);
    return weight;
  }

  return { memory, fp8, grouped, superblocks, prepared };
}
