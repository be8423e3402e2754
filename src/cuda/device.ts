import { type CudaApi, CudaStatus, DeviceAttribute } from "./driver-symbols.ts";
import { callCuda, checkCuda } from "./errors.ts";
import { OutPointer } from "./ffi.ts";

/** One GPU and what the engine needs to know of it. Needs `cuInit`, but no context. */
export class Device {
  private constructor(
    /** Index among the visible GPUs (`CUDA_VISIBLE_DEVICES` applies). */
    readonly ordinal: number,
    /** The CUdevice. */
    readonly id: number,
    /** As the driver calls it, e.g. `NVIDIA H200`. */
    readonly name: string,
    /** Compute capability, [major, minor]. */
    readonly computeCapability: readonly [number, number],
    readonly multiprocessors: number,
    /** Bytes of device memory. */
    readonly totalMemory: number,
    /** Bytes of L2 cache. */
    readonly l2CacheSize: number,
    /** Most bytes of shared memory a block can opt in to. */
    readonly sharedMemoryPerBlock: number,
    readonly sharedMemoryPerMultiprocessor: number,
  ) {}

  /** Whether its kernels can reach the memory of another GPU, by its CUdevice. */
  canReach(api: CudaApi, peer: number): boolean {
    const can = new Int32Array(1);
    callCuda(api, "cuDeviceCanAccessPeer", [can, this.id, peer], `GPU ${peer}`);
    return can[0] !== 0;
  }

  /** Number of visible GPUs; 0 when there are none. */
  static count(api: CudaApi): number {
    const count = new Int32Array(1);
    const status = api.cuDeviceGetCount(count);
    if (status === CudaStatus.noDevice) return 0;
    checkCuda(api, "cuDeviceGetCount", status);
    return count[0]!;
  }

  static open(api: CudaApi, ordinal: number): Device {
    const device = new Int32Array(1);
    callCuda(api, "cuDeviceGet", [device, ordinal], `GPU ${ordinal}`);
    const id = device[0]!;
    const name = new Uint8Array(256);
    callCuda(api, "cuDeviceGetName", [name, name.length, id]);
    const total = new OutPointer();
    callCuda(api, "cuDeviceTotalMem_v2", [total.array, id]);
    const attribute = (which: number) => {
      const value = new Int32Array(1);
      callCuda(api, "cuDeviceGetAttribute", [value, which, id], `attribute ${which}`);
      return value[0]!;
    };
    return new Device(
      ordinal,
      id,
      new TextDecoder().decode(name.subarray(0, name.indexOf(0))),
      [attribute(DeviceAttribute.computeCapabilityMajor), attribute(DeviceAttribute.computeCapabilityMinor)],
      attribute(DeviceAttribute.multiprocessorCount),
      total.value,
      attribute(DeviceAttribute.l2CacheSize),
      attribute(DeviceAttribute.maxSharedMemoryPerBlockOptin),
      attribute(DeviceAttribute.maxSharedMemoryPerMultiprocessor),
    );
  }
}
