import type { FloatDType } from "../../../base/dtype.ts";
import type { TensorMapShape } from "../../../cuda/tensor-map.ts";
import type { DeviceBuffer } from "../../tensor.ts";

/** What attention kernels need of the GPU and the backend. */
export interface AttentionOptions {
  /** Multiprocessors of the GPU. */
  readonly smCount: number;
  /** The GPU has wgmma and the copy engine of compute capability 9.0. */
  readonly hopper: boolean;
  readonly dtype: FloatDType;
  /** Memory of zeros, freed by whoever provides it. Called at a head shape's first use, never in a captured launch. */
  readonly allocateZeroed: (byteLength: number) => DeviceBuffer;
  /** Copies bytes to a device address, before what is launched next. Never called in a captured launch. */
  readonly upload: (address: number, bytes: Uint8Array) => void;
  /** See `encodeTensorMap` in cuda/. */
  readonly encodeTensorMap: (shape: TensorMapShape) => Uint8Array;
  /** See `KernelOptions.dependentLaunch`. Default false. */
  readonly dependentLaunch?: boolean;
}
