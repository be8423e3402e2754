import type { Command } from "commander";
import { formatBytes } from "../base/bytes.ts";
import { EMBEDDED_NAME } from "../llm/embedded-model.ts";
import { type CachedModel, cachedModels, hubCacheFolder } from "../loader/cached-models.ts";
import { createCommand, printNote } from "./command.ts";

interface ListFlags {
  readonly downloadDir?: string;
  readonly quiet?: true;
  readonly json?: true;
}

/** `list`: the models that have been downloaded, wholly or in part, and the embedded one. */
export function listCommand(name: string): Command {
  return createCommand(name, ["octavo list", "octavo list --json | jq -r '.models[].id'"])
    .alias("ls")
    .description("Lists the models in the Hugging Face cache, with what is downloaded of them.")
    .option("--download-dir <folder>", "where models are stored (default: the Hugging Face cache)")
    .option("-q, --quiet", "names of models that can be run, one a line")
    .option("--json", "print JSON")
    .action(list);
}

function list({ downloadDir, quiet, json }: ListFlags): void {
  const folder = hubCacheFolder(downloadDir);
  const models = cachedModels(folder);
  if (json) console.log(JSON.stringify({ folder, embedded: EMBEDDED_NAME, models }, null, 2));
  else if (quiet) console.log([EMBEDDED_NAME, ...usableIds(models)].join("\n"));
  else {
    const rows = models.map((model) => [model.id, formatBytes(model.bytes), dateOf(model), stateOf(model)]);
    const embedded = [EMBEDDED_NAME, "", "", "part of Octavo"];
    console.log(table([["NAME", "SIZE", "MODIFIED", "STATE"], embedded, ...rows]));
    if (models.length === 0)
      printNote(`nothing has been downloaded to ${folder}: octavo pull Qwen/Qwen3-0.6B`);
  }
}

function usableIds(models: readonly CachedModel[]): readonly string[] {
  return models.filter(({ snapshots }) => snapshots.length > 0).map(({ id }) => id);
}

/** To the minute, in UTC. */
function dateOf({ modified }: CachedModel): string {
  return modified.toISOString().slice(0, 16).replace("T", " ");
}

function stateOf({ id, partialBytes, snapshots }: CachedModel): string {
  if (snapshots.length > 0) return "complete";
  const part = partialBytes > 0 ? `, a file of it so far ${formatBytes(partialBytes)}` : "";
  return `incomplete${part}: octavo pull ${id}`;
}

/** Rows as columns of equal width. */
function table(rows: readonly (readonly string[])[]): string {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  return rows
    .map((row) =>
      row
        .map((cell, i) => cell.padEnd(widths[i]!))
        .join("  ")
        .trimEnd(),
    )
    .join("\n");
}
