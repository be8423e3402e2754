import { availableParallelism, release } from "node:os";
import type { Command } from "commander";
import { version } from "../../package.json";
import { measureBandwidth } from "../backend/simd/bandwidth.ts";
import { type FoundKernels, findKernels } from "../backend/simd/x64/machine-code.ts";
import { formatBytes } from "../base/bytes.ts";
import { cacheFolder } from "../base/cache-folder.ts";
import {
  type CpuKernels,
  type EngineConfig,
  type EngineOptions,
  resolveEngineConfig,
} from "../base/config.ts";
import { DeviceError, ModelNotFoundError } from "../base/errors.ts";
import { hubCacheFolder } from "../loader/cached-models.ts";
import { createCommand, modelOf } from "./command.ts";
import { type CudaDiagnosis, describeCuda, diagnoseCuda } from "./cuda-diagnosis.ts";
import { ENGINE_FLAGS } from "./engine-flags.ts";
import { messageInFlags } from "./flag-names.ts";
import { addFlags, givenFlags } from "./flag-table.ts";
import { hostMemory } from "./host-memory.ts";
import { describeModel, diagnoseModel, gpuMemories, type ModelDiagnosis } from "./model-diagnosis.ts";
import { modelOnDisk } from "./model-on-disk.ts";
import { titledLines } from "./titled-lines.ts";

/** Weights that expectations are given for where no model is named. */
const EXAMPLE_BYTES = 2 ** 30;

const KERNELS: Readonly<Record<FoundKernels, string>> = {
  avx512: "AVX-512, assembled at the start",
  avx2: "AVX2, assembled at the start",
  wasm: "WebAssembly",
};

interface DoctorFlags {
  readonly json?: true;
}

/** The engine's options that change what a device offers. */
const { device, threads, cpuKernels } = ENGINE_FLAGS;
const DEVICE_FLAGS = {
  device: [device[0], "auto, cpu, cpu-reference, or cuda: fail when no GPU can be used (default: auto)"],
  ...{ threads, cpuKernels },
} as const;

/** The findings of `octavo doctor`; printed as they are with --json. */
interface Diagnosis {
  readonly octavo: string;
  readonly bun: string;
  readonly os: string;
  readonly cpuCores: number;
  /** Bytes. */
  readonly memory: number;
  /**
   * Threads, bytes a second that they read of memory together, and products' kernels, those that were asked for and what they are here; or why
   * `--device cpu` would fail.
   */
  readonly cpu:
    | {
        readonly threads: number;
        readonly bandwidth: number;
        readonly cpuKernels: CpuKernels;
        readonly kernels: FoundKernels;
      }
    | { readonly problem: string };
  readonly cuda: CudaDiagnosis;
  /** The device that `--device auto` stands for here. */
  readonly auto: { readonly device: "cpu" | "cuda"; readonly reason: string };
  readonly folders: { readonly models: string; readonly kernels: string };
  /** The model that was asked about. */
  readonly model?: ModelDiagnosis;
}

/** `doctor`: the parts of CUDA that this machine has, those it lacks, and how to get them. */
export function doctorCommand(name: string): Command {
  const command = createCommand(name, [
    "octavo doctor",
    "octavo doctor --device cuda --json    exit code 69 unless a GPU can be used",
    "octavo doctor --model ./model         also whether a model would run here, its size, and what fits",
  ])
    .description("Shows the GPUs, libraries and folders that Octavo finds, and what to install.")
    .argument("[model]", "a model that is on this machine, to look at without loading it")
    .option("--model <model>", "the same")
    .option("--json", "print JSON");
  return addFlags(command, "Options:", DEVICE_FLAGS).action(
    (model: string | undefined, flags: DoctorFlags, command: Command) =>
      doctor(modelOf(command, model), flags, givenFlags<EngineOptions>(command, DEVICE_FLAGS)),
  );
}

async function doctor(
  model: string | undefined,
  { json }: DoctorFlags,
  options: EngineOptions,
): Promise<void> {
  const config = resolveEngineConfig(options);
  const path = model && modelOnDisk(model);
  if (model !== undefined && path === undefined)
    throw new ModelNotFoundError(
      model,
      `${model} is not complete in ${hubCacheFolder()}: octavo pull ${model}`,
    );
  let refusal: unknown;
  const diagnosis = await diagnose(path, config, (error) => {
    refusal = error;
  });
  console.log(json ? JSON.stringify(diagnosis, null, 2) : describe(diagnosis));
  if (config.device === "cuda" && diagnosis.cuda.problem !== undefined)
    throw new DeviceError(diagnosis.cuda.problem);
  if (refusal !== undefined) throw refusal;
}

async function diagnose(
  model: string | undefined,
  config: EngineConfig,
  onProblem: (error: unknown) => void,
): Promise<Diagnosis> {
  const cuda = diagnoseCuda();
  const [gpu] = cuda.gpus;
  return {
    octavo: version,
    bun: Bun.version,
    os: `${process.platform} ${process.arch}, ${release()}`,
    cpuCores: availableParallelism(),
    memory: hostMemory(),
    cpu: await diagnoseCpu(config),
    cuda,
    auto: gpu
      ? { device: "cuda", reason: `GPU 0 is ${gpu.name}` }
      : { device: "cpu", reason: "no GPU was found" },
    folders: { models: hubCacheFolder(), kernels: cacheFolder("kernels") },
    ...(model !== undefined && {
      model: await diagnoseModel(model, gpuMemories(cuda.gpus), onProblem),
    }),
  };
}

async function diagnoseCpu({
  threads = availableParallelism(),
  cpuKernels,
}: EngineConfig): Promise<Diagnosis["cpu"]> {
  try {
    const kernels = findKernels(cpuKernels);
    return { threads, bandwidth: await measureBandwidth({ threads }), cpuKernels, kernels };
  } catch (error) {
    return { problem: messageInFlags(error) };
  }
}

function describeCpu(cpu: Diagnosis["cpu"], weights: number | undefined): string {
  if ("problem" in cpu) return `not usable: ${cpu.problem}`;
  const { threads, bandwidth, cpuKernels, kernels } = cpu;
  const bytes = weights ?? EXAMPLE_BYTES;
  const most = (bandwidth / bytes).toPrecision(2);
  const ofWhat = weights === undefined ? `a model with ${formatBytes(bytes)} of weights` : "the model below";
  const readers = threads === 1 ? "1 thread reads" : `${threads} threads read`;
  const isLeft = kernels === "wasm" && cpuKernels === "auto";
  const because = isLeft ? ": this machine has no AVX2, or executes no code that is assembled" : "";
  return `${readers} memory at ${(bandwidth / 1e9).toFixed(1)} GB/s: one stream of ${ofWhat} writes ${most} tokens/s at most; products are computed with ${KERNELS[kernels]}${because}`;
}

function describe({ cpu, cuda, auto, folders, model, ...machine }: Diagnosis): string {
  const { octavo, bun, os, cpuCores, memory } = machine;
  return [
    `Octavo ${octavo}, Bun ${bun}, ${os}, ${cpuCores} CPU ${cpuCores === 1 ? "core" : "cores"}, ${formatBytes(memory)}`,
    "",
    "CUDA",
    titledLines(describeCuda(cuda)),
    "",
    "Devices",
    titledLines([
      ["cpu", describeCpu(cpu, model?.weights?.bytes)],
      ["cuda", cuda.problem === undefined ? "usable" : `not usable: ${cuda.problem}`],
      ["auto", `${auto.device}, because ${auto.reason}`],
    ]),
    "",
    "Folders",
    titledLines([
      ["models", folders.models],
      ["kernels", folders.kernels],
    ]),
    ...(model ? ["", "Model", titledLines(describeModel(model, memory))] : []),
  ].join("\n");
}
