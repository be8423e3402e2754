import { type DeviceBuffer, Tensor } from "../../../../src/backend/tensor.ts";
import { type DType, dtypeSize } from "../../../../src/base/dtype.ts";

/** Tensors at addresses of their own that nothing is behind: for launches that are only recorded. */
export class FakeTensors {
  #next = 2 ** 40;

  readonly bf16 = (...shape: number[]): Tensor => this.of("bfloat16", ...shape);
  readonly f32 = (...shape: number[]): Tensor => this.of("float32", ...shape);
  readonly i32 = (...shape: number[]): Tensor => this.of("int32", ...shape);

  of(dtype: DType, ...shape: number[]): Tensor {
    const byteLength = shape.reduce((product, extent) => product * extent, dtypeSize(dtype));
    const buffer: DeviceBuffer = { byteLength, address: this.#next, dispose: () => {} };
    this.#next += Math.ceil(byteLength / 256) * 256;
    return new Tensor(buffer, dtype, shape);
  }
}
