import type { Command } from "commander";
import { resolveModel } from "../loader/resolve-model.ts";
import { createCommand, say } from "./command.ts";
import { messageInFlags } from "./flag-names.ts";
import { ProgressBars } from "./progress.ts";

interface PullFlags {
  readonly revision?: string;
  readonly downloadDir?: string;
}

/** `pull`: models into the Hugging Face cache, side by side. Prints the folder of each. */
export function pullCommand(name: string): Command {
  const examples = [
    "octavo pull Qwen/Qwen3-0.6B",
    "HF_TOKEN=hf_... octavo pull meta-llama/Llama-3.2-1B-Instruct Qwen/Qwen3-4B",
  ];
  return createCommand(name, examples)
    .description(
      "Downloads models to the Hugging Face cache, resuming where it stopped; prints their folders.",
    )
    .argument("<models...>", "Hugging Face ids, such as Qwen/Qwen3-0.6B")
    .option("--revision <name>", "branch, tag or commit (default: main)")
    .option("--download-dir <folder>", "where models are stored (default: the Hugging Face cache)")
    .addHelpText("after", "\nEnvironment: HF_TOKEN, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_ENDPOINT.")
    .action(pull);
}

async function pull(models: readonly string[], { revision, downloadDir }: PullFlags): Promise<void> {
  const bars = new ProgressBars();
  const results = await Promise.allSettled(
    [...new Set(models)].map((model) =>
      resolveModel(model, {
        ...(revision !== undefined && { revision }),
        ...(downloadDir !== undefined && { downloadDir }),
        onProgress: (loadedBytes, totalBytes) => bars.update(model, loadedBytes, totalBytes),
      }),
    ),
  );
  bars.stop();
  for (const result of results) if (result.status === "fulfilled") console.log(result.value);
  const errors = results.flatMap((result) => (result.status === "rejected" ? [result.reason] : []));
  for (const error of errors.slice(1)) say(messageInFlags(error));
  if (errors.length > 0) throw errors[0];
}
