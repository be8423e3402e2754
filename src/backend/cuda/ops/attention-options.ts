import type { FloatDType } from "../../../base/dtype.ts";
import type { TensorMapShape } from "../../../cuda/tensor-map.ts";
import type { DeviceBuffer } from "../../tensor.ts";

/** Properties of the GPU and the backend that attention kernels need. */
export interface AttentionOptions {
  /** Multiprocessors of the GPU. */
  readonly smCount: number;
  /** Shared memory that a block may ask for. */
  readonly sharedBytesPerBlock: number;
  /** The GPU has wgmma and the copy engine of compute capability 9.0. */
  readonly hopper: boolean;
  readonly dtype: FloatDType;
  /**
   * A decode row's result does not depend on what other rows there are: its cut depends on its length alone. Many rows
   * then take longer, as most of their splits are empty, and few long ones, which are not cut as finely. Default false.
   */
  readonly batchInvariant?: boolean;
  /**
   * Memory of zeros, freed by whoever provides it. Called at a head shape's first use, and with `batchInvariant` when there
   * are more decode rows than before; never in a captured launch.
   */
  readonly allocateZeroed: (byteLength: number) => DeviceBuffer;
  /** Copies bytes to a device address, before what is launched next. Never called in a captured launch. */
  readonly upload: (address: number, bytes: Uint8Array) => void;
  /** See `encodeTensorMap` in cuda/. */
  readonly encodeTensorMap: (shape: TensorMapShape) => Uint8Array;
  /** See `KernelOptions.dependentLaunch`. Default false. */
  readonly dependentLaunch?: boolean;
}
