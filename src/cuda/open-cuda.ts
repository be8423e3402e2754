import { DeviceError, messageOf } from "../base/errors.ts";
import { type CublasLtApi, cublasLtSymbols } from "./cublaslt-symbols.ts";
import { Device } from "./device.ts";
import { type CudaApi, CudaStatus, driverSymbols, driverVersionSymbols } from "./driver-symbols.ts";
import { checkCuda, cudaError } from "./errors.ts";
import {
  type NativeApi,
  type OpenLibrary,
  openLibrary,
  preloadLibrary,
  type SymbolTable,
  setDefaultEnvironment,
} from "./ffi.ts";
import {
  builtinsOf,
  installHint,
  type LibraryCandidate,
  type LibraryName,
  libraryCandidates,
  type SearchHost,
  thisHost,
} from "./libraries.ts";
import { ncclVersion } from "./nccl.ts";
import { type NcclApi, ncclSymbols, ncclVersionSymbols } from "./nccl-symbols.ts";
import { Nvrtc } from "./nvrtc.ts";
import { nvrtcSymbols } from "./nvrtc-symbols.ts";

/** The oldest driver that has every function of the symbol table, as major · 1000 + minor · 10. */
const MIN_DRIVER_VERSION = 12000;
const MIN_COMPUTE_CAPABILITY = 8;
/** The oldest NCCL that has every function of the symbol table, `ncclCommInitRankScalable` being the youngest. */
const MIN_NCCL_VERSION = 22300;

/** The search for libraries and their loading; replaceable, so that tests need no GPU. */
export interface Machine {
  readonly host: SearchHost;
  readonly open: OpenLibrary;
  /** See `preloadLibrary`. */
  readonly preload: (path: string) => string | undefined;
  /** See `setDefaultEnvironment`. */
  readonly setDefault: (name: string, value: string) => void;
}

export function thisMachine(): Machine {
  return { host: thisHost(), open: openLibrary, preload: preloadLibrary, setDefault: setDefaultEnvironment };
}

/** The driver, initialised. */
export interface OpenedDriver {
  readonly api: CudaApi;
  /** The newest CUDA it runs, e.g. [13, 0]. */
  readonly version: readonly [number, number];
  readonly library: LibraryCandidate;
}

/** The files of an NVRTC that was found: enough to open it again in a Worker. */
export interface NvrtcFiles {
  readonly library: string;
  /** libnvrtc-builtins, when NVRTC cannot find it by itself. */
  readonly builtins: string | undefined;
}

/** The opened GPU and libraries that the CUDA backend works with. */
export interface Cuda {
  readonly driver: OpenedDriver;
  readonly device: Device;
  readonly nvrtc: Nvrtc;
  readonly nvrtcFiles: NvrtcFiles;
  readonly cublasLt: CublasLtApi;
}

/**
 * Opens everything for GPU `ordinal`. Throws `DeviceError`, naming the remedy, when the driver is missing or older
 * than CUDA 12.0, there is no such GPU, it is older than compute capability 8.0, or NVRTC or cuBLASLt is missing.
 */
export function openCuda(ordinal = 0, machine = thisMachine()): Cuda {
  const driver = openDriver(machine);
  const device = openDevice(driver, ordinal, machine);
  const { nvrtc, files } = openNvrtc(machine, driver.version[0]);
  const [major, minor] = device.computeCapability;
  if (!nvrtc.architectures.includes(major * 10 + minor)) {
    throw new DeviceError(
      `NVRTC ${nvrtc.version} (${files.library}) cannot compile for ${device.name}, compute capability ${major}.${minor}: ${installHint("nvrtc", driver.version[0])}`,
    );
  }
  return {
    driver,
    device,
    nvrtc,
    nvrtcFiles: files,
    cublasLt: openCublasLt(machine, driver.version[0]).api,
  };
}

/** Number of GPUs that a usable driver shows; 0 when anything is missing. */
export function gpuCount(machine = thisMachine()): number {
  try {
    return Device.count(openDriver(machine).api);
  } catch (error) {
    if (error instanceof DeviceError) return 0;
    throw error;
  }
}

/** The newest CUDA that the driver runs, e.g. [13, 0]; undefined without a driver. Takes no time: nothing is initialised. */
export function driverVersion(machine: Machine): readonly [number, number] | undefined {
  try {
    return majorMinor(queryVersion(machine).version);
  } catch (error) {
    if (error instanceof DeviceError) return undefined;
    throw error;
  }
}

function queryVersion(machine: Machine): { library: LibraryCandidate; status: number; version: number } {
  const candidates = libraryCandidates("cuda", machine.host);
  const { api, library } = openFirst(machine, "cuda", candidates, driverVersionSymbols, 13);
  const raw = new Int32Array(1);
  const status = api.cuDriverGetVersion(raw);
  return { library, status, version: raw[0]! };
}

/** Opens and initialises the driver. */
export function openDriver(machine: Machine): OpenedDriver {
  // An old driver lacks some functions of the whole table, so its version is asked for first.
  const { library, status, version } = queryVersion(machine);
  if (status === CudaStatus.success && version < MIN_DRIVER_VERSION) {
    throw new DeviceError(
      `the NVIDIA driver supports CUDA ${majorMinor(version).join(".")}, Octavo needs 12.0: update the driver to 525 or newer`,
    );
  }
  const { api } = openFirst(machine, "cuda", [library], driverSymbols, 13);
  checkCuda(api, "cuDriverGetVersion", status);
  const initialised = api.cuInit(0);
  if (initialised === CudaStatus.noDevice) throw noGpu(machine);
  if (initialised !== CudaStatus.success) {
    throw new DeviceError(
      "the NVIDIA driver does not start: see that nvidia-smi works and that the driver's kernel module and library have the same version",
      { cause: cudaError(api, "cuInit", initialised) },
    );
  }
  return { api, version: majorMinor(version), library };
}

function openDevice(driver: OpenedDriver, ordinal: number, machine: Machine): Device {
  const count = Device.count(driver.api);
  if (count === 0) throw noGpu(machine);
  if (ordinal >= count) {
    throw new DeviceError(
      `GPU ${ordinal} was asked for, but only ${count} ${count === 1 ? "is" : "are"} visible`,
    );
  }
  const device = Device.open(driver.api, ordinal);
  const [major, minor] = device.computeCapability;
  if (major < MIN_COMPUTE_CAPABILITY) {
    throw new DeviceError(
      `${device.name} has compute capability ${major}.${minor}, Octavo needs 8.0 (Ampere) or newer: use another GPU or device "cpu"`,
    );
  }
  return device;
}

/** Opens NVRTC, of a CUDA no newer than the driver runs. */
export function openNvrtc(
  machine: Machine,
  driverMajor: number,
): { nvrtc: Nvrtc; files: NvrtcFiles; library: LibraryCandidate } {
  const candidates = libraryCandidates("nvrtc", machine.host, driverMajor);
  const preparing: Machine = {
    ...machine,
    open: (path, symbols) => {
      const candidate = candidates.find((entry) => entry.path === path);
      const builtins = candidate && builtinsOf(candidate);
      if (builtins !== undefined) preloadBuiltins(machine, builtins);
      return machine.open(path, symbols);
    },
  };
  const { api, library } = openFirst(preparing, "nvrtc", candidates, nvrtcSymbols, driverMajor);
  const files = { library: library.path, builtins: builtinsOf(library) };
  return { nvrtc: new Nvrtc(api), files, library };
}

/** Opens the NVRTC that another thread found. */
export function reopenNvrtc(files: NvrtcFiles): Nvrtc {
  const machine = thisMachine();
  if (files.builtins !== undefined) preloadBuiltins(machine, files.builtins);
  return new Nvrtc(machine.open(files.library, nvrtcSymbols));
}

/** Opens cuBLASLt, of a CUDA no newer than the driver runs. */
export function openCublasLt(
  machine: Machine,
  driverMajor: number,
): { api: CublasLtApi; library: LibraryCandidate } {
  const candidates = libraryCandidates("cublasLt", machine.host, driverMajor);
  return openFirst(machine, "cublasLt", candidates, cublasLtSymbols, driverMajor);
}

/**
 * Opens NCCL, which only a model on several GPUs needs. Its NVLink multicast is off unless NCCL_NVLS_ENABLE says otherwise: it
 * takes what several processes share on a host, for sizes at which Octavo has no use for it.
 * @throws DeviceError, naming the remedy, when it is missing or older than 2.23.
 */
export function openNccl(
  machine: Machine,
  driverMajor: number,
): { api: NcclApi; version: string; library: LibraryCandidate } {
  machine.setDefault("NCCL_NVLS_ENABLE", "0");
  const candidates = libraryCandidates("nccl", machine.host);
  const asked = openFirst(machine, "nccl", candidates, ncclVersionSymbols, driverMajor);
  const raw = new Int32Array(1);
  const status = asked.api.ncclGetVersion(raw);
  const version = ncclVersion(raw[0]!);
  if (status !== 0 || raw[0]! < MIN_NCCL_VERSION) {
    throw new DeviceError(
      `NCCL ${version} (${asked.library.path}) is too old, Octavo needs 2.23: ${installHint("nccl", driverMajor)}`,
    );
  }
  const { api, library } = openFirst(machine, "nccl", [asked.library], ncclSymbols, driverMajor);
  return { api, version, library };
}

function preloadBuiltins(machine: Machine, path: string): void {
  const complaint = machine.preload(path);
  if (complaint !== undefined) throw new DeviceError(`cannot load ${path}: ${complaint}`);
}

const TITLES: Record<LibraryName, string> = {
  cuda: "the NVIDIA driver (libcuda.so.1)",
  nvrtc: "NVRTC (libnvrtc.so)",
  cublasLt: "cuBLASLt (libcublasLt.so)",
  nccl: "NCCL (libnccl.so)",
};

function openFirst<const Table extends SymbolTable>(
  machine: Machine,
  name: LibraryName,
  candidates: readonly LibraryCandidate[],
  symbols: Table,
  driverMajor: number,
): { api: NativeApi<Table>; library: LibraryCandidate } {
  const failures: unknown[] = [];
  for (const library of candidates) {
    try {
      return { api: machine.open(library.path, symbols), library };
    } catch (error) {
      failures.push(error);
    }
  }
  throw new DeviceError(`${TITLES[name]} cannot be loaded: ${installHint(name, driverMajor)}`, {
    cause: new AggregateError(failures, failures.map(messageOf).join("; ")),
  });
}

function noGpu({ host }: Machine): DeviceError {
  const visible = host.env["CUDA_VISIBLE_DEVICES"];
  const remedy =
    visible === undefined
      ? "in a container, pass it through (docker run --gpus all)"
      : `CUDA_VISIBLE_DEVICES is "${visible}", which may hide it`;
  return new DeviceError(`the NVIDIA driver shows no GPU: ${remedy}`);
}

/** 12040 → [12, 4]. */
function majorMinor(version: number): readonly [number, number] {
  return [Math.floor(version / 1000), Math.floor((version % 1000) / 10)];
}
