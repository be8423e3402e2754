import type { NativeApi, SymbolTable } from "./ffi.ts";

/**
 * The functions of libcuda.so.1 that Octavo calls, under their exported names: cuda.h maps `cuMemAlloc` to
 * `cuMemAlloc_v2` and so on. All return a CUresult. Handles (CUcontext, CUstream, ...) are `ptr`.
 */
export const driverSymbols = {
  // Library and errors
  /** (flags) */
  cuInit: { args: ["u32"], returns: "i32" },
  /** (int *version) */
  cuDriverGetVersion: { args: ["ptr"], returns: "i32" },
  /** (result, const char **name) */
  cuGetErrorName: { args: ["i32", "ptr"], returns: "i32" },
  /** (result, const char **text) */
  cuGetErrorString: { args: ["i32", "ptr"], returns: "i32" },

  // Devices: a CUdevice is an int
  /** (int *count) */
  cuDeviceGetCount: { args: ["ptr"], returns: "i32" },
  /** (CUdevice *device, ordinal) */
  cuDeviceGet: { args: ["ptr", "i32"], returns: "i32" },
  /** (char *name, length, device) */
  cuDeviceGetName: { args: ["ptr", "i32", "i32"], returns: "i32" },
  /** (size_t *bytes, device) */
  cuDeviceTotalMem_v2: { args: ["ptr", "i32"], returns: "i32" },
  /** (int *value, attribute, device) */
  cuDeviceGetAttribute: { args: ["ptr", "i32", "i32"], returns: "i32" },

  // Contexts
  /** (CUcontext *context, device) */
  cuDevicePrimaryCtxRetain: { args: ["ptr", "i32"], returns: "i32" },
  /** (device) */
  cuDevicePrimaryCtxRelease_v2: { args: ["i32"], returns: "i32" },
  /** (context) */
  cuCtxSetCurrent: { args: ["ptr"], returns: "i32" },

  // Other GPUs' memory
  /** (int *can, device, peer device) */
  cuDeviceCanAccessPeer: { args: ["ptr", "i32", "i32"], returns: "i32" },
  /** (peer context, flags): for the current context */
  cuCtxEnablePeerAccess: { args: ["ptr", "u32"], returns: "i32" },

  // Memory
  /** (size_t *free, size_t *total) */
  cuMemGetInfo_v2: { args: ["ptr", "ptr"], returns: "i32" },
  /** (CUdeviceptr *address, bytes) */
  cuMemAlloc_v2: { args: ["ptr", "u64"], returns: "i32" },
  /** (address) */
  cuMemFree_v2: { args: ["u64"], returns: "i32" },
  /** (void **address, bytes, flags) */
  cuMemHostAlloc: { args: ["ptr", "u64", "u32"], returns: "i32" },
  /** (address) */
  cuMemFreeHost: { args: ["ptr"], returns: "i32" },
  /** (device target, host source, bytes, stream) */
  cuMemcpyHtoDAsync_v2: { args: ["u64", "ptr", "u64", "ptr"], returns: "i32" },
  /** (host target, device source, bytes, stream) */
  cuMemcpyDtoHAsync_v2: { args: ["ptr", "u64", "u64", "ptr"], returns: "i32" },
  /** (device target, device source, bytes, stream) */
  cuMemcpyDtoDAsync_v2: { args: ["u64", "u64", "u64", "ptr"], returns: "i32" },
  /** (address, byte, count, stream) */
  cuMemsetD8Async: { args: ["u64", "u8", "u64", "ptr"], returns: "i32" },

  // Streams and events
  /** (CUstream *stream, flags) */
  cuStreamCreate: { args: ["ptr", "u32"], returns: "i32" },
  /** (stream) */
  cuStreamDestroy_v2: { args: ["ptr"], returns: "i32" },
  /** (stream, event, flags) */
  cuStreamWaitEvent: { args: ["ptr", "ptr", "u32"], returns: "i32" },
  /** (stream) */
  cuStreamSynchronize: { args: ["ptr"], returns: "i32" },
  /** (CUevent *event, flags) */
  cuEventCreate: { args: ["ptr", "u32"], returns: "i32" },
  /** (event) */
  cuEventDestroy_v2: { args: ["ptr"], returns: "i32" },
  /** (event, stream) */
  cuEventRecord: { args: ["ptr", "ptr"], returns: "i32" },
  /** (event) */
  cuEventQuery: { args: ["ptr"], returns: "i32" },
  /** (event) */
  cuEventSynchronize: { args: ["ptr"], returns: "i32" },
  /** (float *milliseconds, start, end) */
  cuEventElapsedTime: { args: ["ptr", "ptr", "ptr"], returns: "i32" },

  // Modules and kernels
  /** (CUmodule *module, const void *image) */
  cuModuleLoadData: { args: ["ptr", "ptr"], returns: "i32" },
  /** (module) */
  cuModuleUnload: { args: ["ptr"], returns: "i32" },
  /** (CUfunction *function, module, name) */
  cuModuleGetFunction: { args: ["ptr", "ptr", "cstring"], returns: "i32" },
  /** (int *value, attribute, function) */
  cuFuncGetAttribute: { args: ["ptr", "i32", "ptr"], returns: "i32" },
  /** (int *blocks, function, threads, dynamic shared bytes) */
  cuOccupancyMaxActiveBlocksPerMultiprocessor: { args: ["ptr", "ptr", "i32", "u64"], returns: "i32" },
  /** (int *clusters, function, const CUlaunchConfig *config) */
  cuOccupancyMaxActiveClusters: { args: ["ptr", "ptr", "ptr"], returns: "i32" },
  /** (function, attribute, value) */
  cuFuncSetAttribute: { args: ["ptr", "i32", "i32"], returns: "i32" },
  /** (function, grid x y z, block x y z, dynamic shared bytes, stream, void **arguments, void **extra) */
  cuLaunchKernel: {
    args: ["ptr", "u32", "u32", "u32", "u32", "u32", "u32", "u32", "ptr", "ptr", "ptr"],
    returns: "i32",
  },
  /** (const CUlaunchConfig *config, function, void **arguments, void **extra) */
  cuLaunchKernelEx: { args: ["ptr", "ptr", "ptr", "ptr"], returns: "i32" },

  /**
   * (CUtensorMap *map, data type, rank, address, const u64 *extents, const u64 *strides, const u32 *box,
   * const u32 *element strides, interleave, swizzle, L2 promotion, out-of-bounds fill)
   */
  cuTensorMapEncodeTiled: {
    args: ["ptr", "i32", "u32", "u64", "ptr", "ptr", "ptr", "ptr", "i32", "i32", "i32", "i32"],
    returns: "i32",
  },

  // Graphs
  /** (stream, capture mode) */
  cuStreamBeginCapture_v2: { args: ["ptr", "i32"], returns: "i32" },
  /** (stream, CUgraph *graph) */
  cuStreamEndCapture: { args: ["ptr", "ptr"], returns: "i32" },
  /** (CUgraphExec *exec, graph, flags) */
  cuGraphInstantiateWithFlags: { args: ["ptr", "ptr", "u64"], returns: "i32" },
  /** (exec, stream) */
  cuGraphUpload: { args: ["ptr", "ptr"], returns: "i32" },
  /** (exec, stream) */
  cuGraphLaunch: { args: ["ptr", "ptr"], returns: "i32" },
  /** (exec) */
  cuGraphExecDestroy: { args: ["ptr"], returns: "i32" },
  /** (graph) */
  cuGraphDestroy: { args: ["ptr"], returns: "i32" },
} as const satisfies SymbolTable;

/** The CUDA driver: everything above the FFI takes it as an argument, so tests can put a fake in its place. */
export type CudaApi = NativeApi<typeof driverSymbols>;

/** The functions that every driver has: enough to tell that one is too old for the rest of the table. */
export const driverVersionSymbols = {
  cuDriverGetVersion: driverSymbols.cuDriverGetVersion,
} as const satisfies SymbolTable;

export const DeviceAttribute = {
  multiprocessorCount: 16,
  l2CacheSize: 38,
  computeCapabilityMajor: 75,
  computeCapabilityMinor: 76,
  maxSharedMemoryPerMultiprocessor: 81,
  maxSharedMemoryPerBlockOptin: 97,
} as const;

export const STREAM_NON_BLOCKING = 1;
/** CUfunction_attribute. */
export const FunctionAttribute = {
  sharedBytes: 1,
  maxDynamicSharedBytes: 8,
  preferredSharedPercent: 9,
} as const;
export const EVENT_DISABLE_TIMING = 2;
export const MEMHOSTALLOC_PORTABLE = 1;
export const MEMHOSTALLOC_DEVICEMAP = 2;
/** Other threads may keep allocating while this one captures. */
export const CAPTURE_MODE_THREAD_LOCAL = 1;
export const LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION = 6;

/** CUtensorMapDataType of 16-bit floats, and the layouts that `encodeTensorMap` asks for. */
export const TensorMapType = { uint32: 2, float16: 6, bfloat16: 9 } as const;
/** By bytes of a row. */
export const TensorMapSwizzle = { 0: 0, 64: 2, 128: 3 } as const;
export const TENSOR_MAP_L2_PROMOTION_256B = 3;

export const CudaStatus = {
  success: 0,
  outOfMemory: 2,
  noDevice: 100,
  notReady: 600,
  peerAccessAlreadyEnabled: 704,
} as const;
