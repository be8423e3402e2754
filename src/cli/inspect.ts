import type { Command } from "commander";
import { formatBytes } from "../base/bytes.ts";
import { describeWeights } from "../base/weight-summary.ts";
import { inspectCuda } from "../cuda/cuda-report.ts";
import { EMBEDDED_NAME } from "../llm/embedded-model.ts";
import type { SizeOptions } from "../llm/inspect-model.ts";
import { createCommand } from "./command.ts";
import { describeCuda, diagnoseCuda } from "./cuda-diagnosis.ts";
import { ENGINE_FLAGS } from "./engine-flags.ts";
import { addFlags, givenFlags } from "./flag-table.ts";
import { countValue, numberValue, quantityValue } from "./flag-values.ts";
import { hostMemory } from "./host-memory.ts";
import {
  describeFit,
  describeModel,
  describeToken,
  diagnoseModel,
  type GpuMemory,
  gpuMemories,
  gpuOf,
  USUAL_GPUS,
} from "./model-diagnosis.ts";
import { lookAtModel } from "./model-on-disk.ts";
import { titledLines } from "./titled-lines.ts";

/** Of a model that has not been downloaded the hub is asked for all but the weights. */
const MODEL = "model folder, GGUF file or Hugging Face id, downloaded or not (default: the embedded model)";
const REVISION = [
  "--revision <name>",
  "branch, tag or commit of a hub model (default: what is downloaded, else main)",
] as const;

/** `inspect`: models and GPUs, without loading anything. */
export function inspectCommand(name: string): Command {
  return createCommand(name)
    .description("Shows what is known of a model or a GPU without loading anything.")
    .addCommand(modelCommand())
    .addCommand(gpuCommand())
    .addCommand(estimateCommand());
}

interface JsonFlag {
  readonly json?: true;
}

interface ModelFlags extends JsonFlag {
  readonly revision?: string;
}

function modelCommand(): Command {
  return createCommand("model", [
    "octavo inspect model Qwen/Qwen3-0.6B",
    "octavo inspect model ./model.gguf --json",
  ])
    .description("A model's architecture, weights, context and tokenizer, and whether it would run here.")
    .argument("[model]", MODEL)
    .option(...REVISION)
    .option("--json", "print JSON")
    .action((model = EMBEDDED_NAME, { json, revision }: ModelFlags) =>
      lookAtModel(model, revision, async (folder) => {
        let refusal: unknown;
        const found = await diagnoseModel(folder, gpuMemories(inspectCuda().gpus), (error) => {
          refusal = error;
        });
        const named = { ...found, path: model };
        console.log(json ? JSON.stringify(named, null, 2) : titledLines(describeModel(named, hostMemory())));
        if (refusal !== undefined) throw refusal;
      }),
    );
}

function gpuCommand(): Command {
  return createCommand("gpu", ["octavo inspect gpu", "octavo inspect gpu --json"])
    .description("The GPUs and the libraries that drive them; octavo doctor shows the rest of the machine.")
    .option("--json", "print JSON")
    .action(({ json }: JsonFlag) => {
      const found = diagnoseCuda();
      const usable = [
        "cuda",
        found.problem === undefined ? "usable" : `not usable: ${found.problem}`,
      ] as const;
      console.log(json ? JSON.stringify(found, null, 2) : titledLines([...describeCuda(found), usable]));
    });
}

interface EstimateFlags extends ModelFlags {
  readonly memory?: readonly GpuMemory[];
  readonly gpuMemoryUtilization: number;
  readonly tensorParallelSize: number;
  readonly maxModelLen?: number;
}

function estimateCommand(): Command {
  const { quantization, quantizeLmHead, kvCacheDtype } = ENGINE_FLAGS;
  const sizes = { quantization, quantizeLmHead, kvCacheDtype };
  const command = createCommand("estimate", [
    "octavo inspect estimate Qwen/Qwen3-8B --memory 24G --max-model-len 8k",
    "octavo inspect estimate Qwen/Qwen3-8B --quantization fp8 --kv-cache-dtype fp8",
  ])
    .description("How many GPUs a model needs, and how much context fits beside its weights.")
    .argument("[model]", MODEL)
    .option(
      "--memory <bytes>",
      "memory of a GPU, as 24G; repeatable (default: the GPUs here, else 24 and 80 GiB)",
      (text: string, previous: readonly GpuMemory[] = []) => [...previous, gpuOf(quantityValue(text))],
    )
    .option("--gpu-memory-utilization <share>", "share of the GPU's memory", numberValue, 0.9)
    .option("--tensor-parallel-size <count>", "GPUs at least; -tp for short", countValue, 1)
    .option(
      "--max-model-len <tokens>",
      "prompt plus output of one sequence (default: the model's)",
      quantityValue,
    )
    .option(...REVISION)
    .option("--json", "print JSON");
  addFlags(command, "Sizes:", sizes);
  return command.action((model = EMBEDDED_NAME, flags: EstimateFlags) =>
    lookAtModel(model, flags.revision, (folder) =>
      estimate(model, folder, flags, givenFlags<SizeOptions>(command, sizes)),
    ),
  );
}

async function estimate(
  model: string,
  folder: string,
  flags: EstimateFlags,
  sizes: SizeOptions,
): Promise<void> {
  const { fitOf, inspectModel, sequenceBytes } = await import("../llm/inspect-model.ts");
  const report = await inspectModel(folder, sizes);
  const { weights, kvBytesPerToken, kvBytesKept, stateBytes } = report;
  const sequenceTokens = flags.maxModelLen ?? report.maxTokens;
  const kvBytesPerSequence = sequenceBytes(folder, report, sequenceTokens);
  const here = gpuMemories(inspectCuda().gpus);
  const gpus = (flags.memory ?? (here.length > 0 ? here : USUAL_GPUS)).map((gpu) => {
    const fit = fitOf(
      ...([folder, report, gpu.bytes, flags.gpuMemoryUtilization] as const),
      ...([flags.tensorParallelSize, sequenceTokens] as const),
    );
    return { ...gpu, ...fit };
  });
  if (flags.json)
    return console.log(
      JSON.stringify(
        {
          ...{ model, weights, kvBytesPerToken, kvBytesKept, stateBytes },
          ...{ sequenceTokens, kvBytesPerSequence, gpus },
        },
        null,
        2,
      ),
    );
  const state = stateBytes === undefined ? "" : `, and ${formatBytes(stateBytes)} of state`;
  console.log(
    titledLines([
      ["model", model],
      ["weights", describeWeights(weights)],
      ["token", describeToken(report)],
      ["sequence", `${formatBytes(kvBytesPerSequence)} for ${sequenceTokens} tokens${state}`],
      ...gpus.map((gpu) => {
        const full = gpu.ranks === undefined ? "" : `: ${gpu.sequences} sequences of that length`;
        return ["gpu", `${gpu.name} ${describeFit(gpu)}${full}`] as const;
      }),
    ]),
  );
}
