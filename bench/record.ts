import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { dirname, join } from "node:path";
import { inspectCuda } from "../src/cuda/cuda-report.ts";

/** A benchmark's outcome with all that is needed to run it again; bench/results/README.md explains each field. */
export interface BenchRecord<Results> {
  readonly benchmark: string;
  /** ISO 8601, UTC. */
  readonly date: string;
  readonly commit: string | null;
  readonly dirty: boolean | null;
  readonly machine: Machine;
  readonly model: string;
  readonly options: object;
  readonly results: Results;
}

export interface Machine {
  readonly platform: string;
  readonly cpus: number;
  readonly bun: string;
  /** The first GPU, as the driver calls it, and how many there are. */
  readonly gpu?: string;
  readonly gpus?: number;
  /** Versions of the driver's kernel module, the newest CUDA it runs, and the libraries. */
  readonly driver?: string;
  readonly cuda?: string;
  readonly nvrtc?: string;
  readonly cublasLt?: string;
}

/** The source that runs; nulls where nobody can tell. */
export interface Revision {
  readonly commit: string | null;
  /** Tracked files differ from the commit. */
  readonly dirty: boolean | null;
}

/** What a command prints; undefined when it fails or does not exist. */
export type RunCommand = (command: readonly string[]) => string | undefined;

export function makeRecord<Results>(
  run: { readonly benchmark: string; readonly model: string; readonly options: object },
  results: Results,
  machine = describeMachine(),
  revision = findRevision(),
): BenchRecord<Results> {
  return {
    ...{ benchmark: run.benchmark, date: new Date().toISOString() },
    ...revision,
    machine,
    ...run,
    results,
  };
}

export function writeRecord(file: string, record: BenchRecord<unknown>): void {
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(file, `${JSON.stringify(record, null, 2)}\n`);
}

/** OCTAVO_COMMIT, what `git describe --always --dirty` prints where a copy was made; without it, from git. */
export function findRevision(
  env: Readonly<Record<string, string | undefined>> = process.env,
  run: RunCommand = runCommand,
): Revision {
  const given = env["OCTAVO_COMMIT"];
  if (given) return { commit: given.replace(/-dirty$/, ""), dirty: given.endsWith("-dirty") };
  const commit = run(["git", "rev-parse", "HEAD"])?.trim();
  if (commit === undefined) return { commit: null, dirty: null };
  const changes = run(["git", "status", "--porcelain", "--untracked-files=no"]);
  return { commit, dirty: changes === undefined ? null : changes.trim() !== "" };
}

export function describeMachine(): Machine {
  const { driverVersion, gpus, libraries } = inspectCuda();
  const version = (name: string) => libraries.find((library) => library.name === name)?.version;
  const found = {
    gpu: gpus[0]?.name,
    gpus: gpus.length === 0 ? undefined : gpus.length,
    driver: kernelModuleVersion(),
    cuda: driverVersion,
    nvrtc: gpus.length === 0 ? undefined : version("nvrtc"),
    cublasLt: gpus.length === 0 ? undefined : version("cublasLt"),
  };
  const known = Object.entries(found).filter(([, value]) => value !== undefined);
  return {
    ...{ platform: `${process.platform} ${process.arch}`, cpus: availableParallelism(), bun: Bun.version },
    ...(Object.fromEntries(known) as Partial<Machine>),
  };
}

function kernelModuleVersion(): string | undefined {
  try {
    // "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build …"
    return /Kernel Module.*?\s(\d+\.[\d.]+)/.exec(readFileSync("/proc/driver/nvidia/version", "utf8"))?.[1];
  } catch {
    return undefined;
  }
}

function runCommand([command, ...args]: readonly string[]): string | undefined {
  const executable = Bun.which(command!);
  if (executable === null) return undefined;
  const cwd = join(import.meta.dir, "..");
  const { success, stdout } = Bun.spawnSync([executable, ...args], { cwd, stderr: "ignore" });
  return success ? stdout.toString() : undefined;
}
