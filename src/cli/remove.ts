import type { Command } from "commander";
import { formatBytes } from "../base/bytes.ts";
import { ConfigError } from "../base/errors.ts";
import { EMBEDDED_NAME } from "../llm/embedded-model.ts";
import { hubCacheFolder, removeCachedModels } from "../loader/cached-models.ts";
import { createCommand } from "./command.ts";

interface RemoveFlags {
  readonly downloadDir?: string;
  readonly force?: boolean;
}

/** `rm`: models out of the Hugging Face cache, all revisions of them. */
export function removeCommand(name: string): Command {
  return createCommand(name, ["octavo rm Qwen/Qwen3-0.6B", "octavo rm org/one org/other"])
    .description("Removes models from the Hugging Face cache, which Python shares. Nothing else is removed.")
    .argument("<models...>", "Hugging Face ids, such as Qwen/Qwen3-0.6B")
    .option("--download-dir <folder>", "where models are stored (default: the Hugging Face cache)")
    .option(
      "-f, --force",
      "also while a process has a file of it open, as one that downloads or loads it has",
    )
    .action(remove);
}

function remove(models: readonly string[], { downloadDir, force = false }: RemoveFlags): void {
  if (models.includes(EMBEDDED_NAME)) throw new ConfigError("model", `${EMBEDDED_NAME} is part of Octavo`);
  for (const { id, bytes } of removeCachedModels(hubCacheFolder(downloadDir), models, { force }))
    console.log(`Removed ${id}, ${formatBytes(bytes)}`);
}
