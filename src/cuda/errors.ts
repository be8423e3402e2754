import { formatByteCounts } from "../base/bytes.ts";
import { DeviceError } from "../base/errors.ts";
import type { CublasLtApi } from "./cublaslt-symbols.ts";
import { type CudaApi, CudaStatus } from "./driver-symbols.ts";
import { type Arguments, callNative, OutPointer, readCString, type StatusFunction } from "./ffi.ts";
import { type NcclApi, NcclStatus } from "./nccl-symbols.ts";
import type { NvrtcApi } from "./nvrtc-symbols.ts";

/**
 * Statuses after which every further call fails and only a new process helps: cuda.h says so of 226, 700, 702, 710,
 * 714-719, 721, 810 and 911; uncorrectable ECC (214) and NVLink (220) errors leave the context just as unusable.
 */
const FATAL = new Set([214, 220, 226, 700, 702, 710, 714, 715, 716, 717, 718, 719, 721, 810, 911]);

/** A call of the CUDA driver failed. */
export class CudaError extends DeviceError {
  override readonly code: string = "cuda_error";

  constructor(
    /** The driver function, e.g. `cuMemAlloc_v2`. */
    readonly call: string,
    /** The CUresult. */
    readonly status: number,
    /** Its name, e.g. `CUDA_ERROR_INVALID_VALUE`. */
    readonly statusName: string,
    /** The driver's sentence about it. */
    readonly statusText: string,
    /** The object of the call, e.g. the kernel launched. */
    readonly detail?: string,
  ) {
    super(`${call} failed${detail ? ` for ${detail}` : ""}: ${statusName} (${status}), ${statusText}`);
  }

  /** The context is poisoned: see `FATAL`. */
  override get fatal(): boolean {
    return FATAL.has(this.status);
  }
}

/** Device or pinned memory ran out. The context stays usable. */
export class CudaOutOfMemoryError extends CudaError {
  override readonly code = "out_of_memory";

  constructor(
    call: string,
    statusName: string,
    statusText: string,
    /** Bytes asked for. */
    readonly requested: number,
    /** Device bytes free at the time. */
    readonly free: number,
    /** Device bytes in all. */
    readonly total: number,
  ) {
    const [wanted, left, all] = formatByteCounts(requested, free, total);
    const detail = `${wanted} with ${left} of ${all} GPU memory free`;
    super(call, CudaStatus.outOfMemory, statusName, statusText, detail);
  }
}

/** NVRTC refused a kernel, or failed itself. */
export class NvrtcError extends DeviceError {
  override readonly code = "kernel_compilation_failed";

  constructor(
    readonly call: string,
    /** The nvrtcResult; 6 is an error in the source. */
    readonly status: number,
    readonly statusText: string,
    /** The compiler's log; empty when the call has none. */
    readonly log: string,
    /** The source's name. */
    readonly program?: string,
  ) {
    super(
      `${call} failed${program ? ` for ${program}` : ""}: ${statusText} (${status})${log ? `\n${log}` : ""}`,
    );
  }
}

/** A call of cuBLASLt failed. */
export class CublasError extends DeviceError {
  override readonly code = "cublas_error";

  constructor(
    readonly call: string,
    /** The cublasStatus_t. */
    readonly status: number,
    readonly statusName: string,
    /** The problem at hand, e.g. its shapes. */
    readonly detail?: string,
  ) {
    super(`${call} failed${detail ? ` for ${detail}` : ""}: ${statusName} (${status})`);
  }
}

/** A call of NCCL failed. */
export class NcclError extends DeviceError {
  override readonly code = "nccl_error";

  constructor(
    readonly call: string,
    /** The ncclResult_t. */
    readonly status: number,
    readonly statusText: string,
    /** NCCL's own words about the last error of the process; empty where it has none. */
    readonly lastError: string,
    /** The object of the call, e.g. the rank. */
    readonly detail?: string,
  ) {
    super(
      `${call} failed${detail ? ` for ${detail}` : ""}: ${statusText} (${status})${lastError ? `, ${lastError}` : ""}`,
    );
  }

  /** After all but a refused call, the ranks are out of step. */
  override get fatal(): boolean {
    return this.status !== NcclStatus.invalidArgument && this.status !== NcclStatus.invalidUsage;
  }
}

/** Throws `CudaError` unless `status` is success. */
export function checkCuda(api: CudaApi, call: string, status: number, detail?: string): void {
  if (status !== CudaStatus.success) throw cudaError(api, call, status, detail);
}

/** Calls a function of the driver. @throws CudaError, about `detail`, unless it succeeds. */
export function callCuda<Name extends StatusFunction<CudaApi>>(
  api: CudaApi,
  name: Name,
  args: Arguments<CudaApi, Name>,
  detail?: string,
): void {
  checkCuda(api, name, callNative(api, name, args), detail);
}

export function cudaError(api: CudaApi, call: string, status: number, detail?: string): CudaError {
  return new CudaError(call, status, cudaStatusName(api, status), cudaStatusText(api, status), detail);
}

export function cudaStatusName(api: CudaApi, status: number): string {
  const out = new OutPointer();
  const named = api.cuGetErrorName(status, out.array) === CudaStatus.success;
  return (named && readCString(out.value)) || "CUDA_ERROR_UNKNOWN_TO_DRIVER";
}

export function cudaStatusText(api: CudaApi, status: number): string {
  const out = new OutPointer();
  const known = api.cuGetErrorString(status, out.array) === CudaStatus.success;
  return (known && readCString(out.value)) || "no description";
}

/** Throws `NvrtcError` unless `status` is success. */
export function checkNvrtc(api: NvrtcApi, call: string, status: number, program?: string, log = ""): void {
  if (status === 0) return;
  throw new NvrtcError(call, status, api.nvrtcGetErrorString(status) ?? "unknown error", log, program);
}

/** Throws `CublasError` unless `status` is success. */
export function checkCublas(api: CublasLtApi, call: string, status: number, detail?: string): void {
  if (status === 0) return;
  throw new CublasError(call, status, api.cublasLtGetStatusName(status) ?? "CUBLAS_STATUS_UNKNOWN", detail);
}

/** Calls a function of NVRTC. @throws NvrtcError, about `program`, unless it succeeds. */
export function callNvrtc<Name extends StatusFunction<NvrtcApi>>(
  api: NvrtcApi,
  name: Name,
  args: Arguments<NvrtcApi, Name>,
  program?: string,
): void {
  checkNvrtc(api, name, callNative(api, name, args), program);
}

/** Calls a function of cuBLASLt. @throws CublasError, about `detail`, unless it succeeds. */
export function callCublas<Name extends StatusFunction<CublasLtApi>>(
  api: CublasLtApi,
  name: Name,
  args: Arguments<CublasLtApi, Name>,
  detail?: string,
): void {
  checkCublas(api, name, callNative(api, name, args), detail);
}

/** Throws `NcclError`, with NCCL's own last error, unless `status` is success. */
export function checkNccl(api: NcclApi, call: string, status: number, detail?: string): void {
  if (status === NcclStatus.success) return;
  const [text, last] = [api.ncclGetErrorString(status), api.ncclGetLastError(0)];
  throw new NcclError(call, status, text ?? "unknown error", last?.trim() ?? "", detail);
}

/** Calls a function of NCCL. @throws NcclError, about `detail`, unless it succeeds. */
export function callNccl<Name extends StatusFunction<NcclApi>>(
  api: NcclApi,
  name: Name,
  args: Arguments<NcclApi, Name>,
  detail?: string,
): void {
  checkNccl(api, name, callNative(api, name, args), detail);
}
