import { ptr } from "bun:ffi";
import {
  type CudaApi,
  TENSOR_MAP_L2_PROMOTION_256B,
  TensorMapSwizzle,
  TensorMapType,
} from "./driver-symbols.ts";
import { checkCuda } from "./errors.ts";

/** Bytes of a CUtensorMap, and what the driver wants one aligned to. */
export const TENSOR_MAP_BYTES = 128;
const ALIGNMENT = 64;

/** Device memory as Hopper's copy engine sees it: dimensions from the innermost on, and the box that one copy takes. */
export interface TensorMapShape {
  readonly dtype: keyof typeof TensorMapType;
  readonly address: number;
  readonly extents: readonly number[];
  /** Bytes between neighbours along each dimension but the innermost. */
  readonly strides: readonly number[];
  readonly box: readonly number[];
  /** Bytes of a row of the box, whose 16-byte pieces are permuted in shared memory; 0: rows stay as they are. Default 128. */
  readonly swizzle?: keyof typeof TensorMapSwizzle;
}

/**
 * A tensor map whose boxes are stored in shared memory with a swizzle.
 * @throws CudaError when the driver refuses the shape.
 */
export function encodeTensorMap(api: CudaApi, shape: TensorMapShape): Uint8Array {
  // Memory of its own: that of a small typed array moves when a view of a part is made.
  const memory = new Uint8Array(new ArrayBuffer(TENSOR_MAP_BYTES + ALIGNMENT));
  const offset = (ALIGNMENT - (ptr(memory) % ALIGNMENT)) % ALIGNMENT;
  const map = memory.subarray(offset, offset + TENSOR_MAP_BYTES);
  const status = api.cuTensorMapEncodeTiled(
    map,
    TensorMapType[shape.dtype],
    shape.extents.length,
    shape.address,
    BigUint64Array.from(shape.extents, BigInt),
    BigUint64Array.from(shape.strides, BigInt),
    Uint32Array.from(shape.box),
    new Uint32Array(shape.extents.length).fill(1),
    0,
    TensorMapSwizzle[shape.swizzle ?? 128],
    TENSOR_MAP_L2_PROMOTION_256B,
    0,
  );
  checkCuda(api, "cuTensorMapEncodeTiled", status, `[${shape.extents}] in boxes of [${shape.box}]`);
  return map;
}
