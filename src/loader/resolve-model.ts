import { existsSync, readdirSync, statSync } from "node:fs";
import { join, resolve } from "node:path";
import { ModelNotFoundError } from "../base/errors.ts";
import { homeFolder } from "../base/home-folder.ts";
import { findModelFile } from "../base/model-file.ts";
import { hasGgufMagic } from "../gguf/gguf-file.ts";
import { isLaterPart } from "../gguf/gguf-model.ts";
import type { ResolveModelOptions } from "./hub.ts";
import { isHubId } from "./hub-id.ts";

/**
 * The local folder or GGUF file of a model: as `findLocalModel`, else the snapshot of a Hugging Face model, see
 * `resolveHubModel`.
 * @throws ModelNotFoundError when `model` is neither a folder nor a GGUF file nor an id; otherwise as `resolveHubModel`.
 */
export async function resolveModel(model: string, options: ResolveModelOptions = {}): Promise<string> {
  const local = findLocalModel(model);
  if (local !== undefined) return local;
  if (/^(?:\.{0,2}\/|~|\.{1,2}$)|\.gguf$/.test(model))
    throw new ModelNotFoundError(model, `${model} does not exist; expected a model folder or a GGUF file`);
  if (!isHubId(model))
    throw new ModelNotFoundError(
      model,
      `${JSON.stringify(model)} is neither a folder, a GGUF file nor a Hugging Face id (org/name)`,
    );
  // The hub's library takes 20 ms to load, which local folders do without.
  const { resolveHubModel } = await import("./hub.ts");
  return resolveHubModel(model, options);
}

/**
 * The absolute path of a model that is on disk: a folder, a GGUF file, or the only GGUF file of a folder without a config.json.
 * @returns undefined when there is nothing of that name
 * @throws ModelNotFoundError for a file of another kind, or a folder of several GGUF files
 */
export function findLocalModel(model: string): string | undefined {
  const path = model.startsWith("~/") ? join(homeFolder(), model.slice(2)) : model;
  if (!existsSync(path)) return undefined;
  const stat = statSync(path);
  if (stat.isDirectory()) return resolve(ggufOf(path) ?? path);
  if (stat.isFile() && hasGgufMagic(path)) return resolve(path);
  throw new ModelNotFoundError(model, `${model} is neither a model folder nor a GGUF file`);
}

/**
 * The GGUF file that a folder holds instead of a config.json, weights and a tokenizer; undefined when there is none.
 * @throws ModelNotFoundError when there are several
 */
function ggufOf(folder: string): string | undefined {
  if (existsSync(join(folder, "config.json"))) return undefined;
  const [name, ...others] = readdirSync(folder).filter(
    (each) => each.endsWith(".gguf") && !isLaterPart(each),
  );
  if (name === undefined) return undefined;
  if (others.length > 0) {
    const names = [name, ...others].sort().slice(0, 5).join(", ");
    throw new ModelNotFoundError(folder, `${folder} has several GGUF files (${names}); name one of them`);
  }
  return findModelFile(folder, name);
}
