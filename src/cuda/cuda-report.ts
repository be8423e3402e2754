import { readFileSync } from "node:fs";
import { basename } from "node:path";
import { messageOf } from "../base/errors.ts";
import { Device } from "./device.ts";
import type { LibraryCandidate, LibraryName } from "./libraries.ts";
import { openCublasLt, openDriver, openNccl, openNvrtc, thisMachine } from "./open-cuda.ts";

/** One library as `octavo doctor` shows it. */
export interface LibraryReport {
  readonly name: LibraryName;
  /** The file loaded; undefined when there is none. */
  readonly path?: string;
  /** The reason that it was looked for there, e.g. `VIRTUAL_ENV`. */
  readonly source?: string;
  /** As the library says, or its file name where it does not. */
  readonly version?: string;
  /** The defect and its remedy. */
  readonly problem?: string;
}

export interface GpuReport {
  readonly ordinal: number;
  readonly name: string;
  /** E.g. `9.0`. */
  readonly computeCapability: string;
  /** Bytes of device memory. */
  readonly totalMemory: number;
  readonly multiprocessors: number;
  /** Ordinals of the GPUs whose memory it reaches: ranks on these exchange small messages without NCCL, and faster. */
  readonly reaches: readonly number[];
}

export interface CudaReport {
  /** The newest CUDA that the driver runs, e.g. `13.0`. */
  readonly driverVersion?: string;
  readonly gpus: readonly GpuReport[];
  /** cuda, nvrtc, cublasLt, nccl, in this order. Without NCCL, one model runs on one GPU only, or on several that reach each other. */
  readonly libraries: readonly LibraryReport[];
}

/** Lists the parts of CUDA that this machine has, and the way to get those it lacks. Never throws; creates no context. */
export function inspectCuda(machine = thisMachine()): CudaReport {
  const gpus: GpuReport[] = [];
  let driverVersion: string | undefined;
  let driverMajor: number | undefined;
  const cuda = report("cuda", () => {
    const driver = openDriver(machine);
    driverMajor = driver.version[0];
    driverVersion = driver.version.join(".");
    const count = Device.count(driver.api);
    const devices = Array.from({ length: count }, (_, ordinal) => Device.open(driver.api, ordinal));
    for (const device of devices) {
      const others = devices.filter((other) => other !== device && device.canReach(driver.api, other.id));
      gpus.push({
        ordinal: device.ordinal,
        name: device.name,
        computeCapability: device.computeCapability.join("."),
        totalMemory: device.totalMemory,
        multiprocessors: device.multiprocessors,
        reaches: others.map(({ ordinal }) => ordinal),
      });
    }
    return describe(driver.library, driverVersion);
  });
  const newest = driverMajor ?? Number.POSITIVE_INFINITY;
  const nvrtc = report("nvrtc", () => {
    const { nvrtc, library } = openNvrtc(machine, newest);
    return describe(library, nvrtc.version);
  });
  const cublasLt = report("cublasLt", () => {
    const { api, library } = openCublasLt(machine, newest);
    return describe(library, cublasVersion(Number(api.cublasLtGetVersion())));
  });
  const nccl = report("nccl", () => {
    const { version, library } = openNccl(machine, newest);
    return describe(library, version);
  });
  return { ...(driverVersion && { driverVersion }), gpus, libraries: [cuda, nvrtc, cublasLt, nccl] };
}

function report(name: LibraryName, inspect: () => Omit<LibraryReport, "name">): LibraryReport {
  try {
    return { name, ...inspect() };
  } catch (error) {
    const causes = causesOf(error).map(messageOf);
    const telling = causes.filter((cause) => !ABSENT.test(cause));
    return { name, problem: messageOf(error) + (telling.length > 0 ? ` (${telling.join("; ")})` : "") };
  }
}

/** The loader's message for a library that is just not there, which adds nothing to "cannot be loaded". */
const ABSENT =
  /\blib(?:cuda|nvrtc|cublasLt|nccl)\.so[.\d]*: cannot open shared object file(?:: No such file or directory)?$/;

function causesOf(error: unknown): readonly unknown[] {
  if (!(error instanceof Error) || error.cause === undefined) return [];
  return error.cause instanceof AggregateError ? error.cause.errors : [error.cause];
}

function describe(library: LibraryCandidate, version: string): Omit<LibraryReport, "name"> {
  return { path: loadedPath(library.path), source: library.source, version };
}

/** The file behind a bare soname, once it is loaded. */
function loadedPath(path: string): string {
  if (path.includes("/")) return path;
  try {
    const files = readFileSync("/proc/self/maps", "utf8")
      .split("\n")
      .map((line) => line.slice(line.indexOf("/")));
    return files.find((file) => basename(file).startsWith(path.slice(0, path.indexOf(".so") + 3))) ?? path;
  } catch {
    return path;
  }
}

/** 130200 → `13.2.0`. */
function cublasVersion(version: number): string {
  return [Math.floor(version / 10000), Math.floor((version % 10000) / 100), version % 100].join(".");
}
