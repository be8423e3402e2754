import { existsSync, statSync } from "node:fs";
import { homedir } from "node:os";
import { join, resolve } from "node:path";
import { ModelNotFoundError } from "../base/errors.ts";
import type { ResolveModelOptions } from "./hub.ts";

/**
 * The local folder of a model: `model` itself when it is a folder, else the snapshot of a Hugging Face model, see
 * `resolveHubModel`.
 * @throws ModelNotFoundError when `model` is neither a folder nor an id; otherwise as `resolveHubModel`.
 */
export async function resolveModel(model: string, options: ResolveModelOptions = {}): Promise<string> {
  const path = model.startsWith("~/") ? join(homedir(), model.slice(2)) : model;
  const exists = existsSync(path);
  if (exists && statSync(path).isDirectory()) return resolve(path);
  if (exists) throw new ModelNotFoundError(model, `${model} is a file; expected a model folder`);
  if (/^(?:\.{0,2}\/|~|\.{1,2}$)/.test(model))
    throw new ModelNotFoundError(model, `model folder ${model} does not exist`);
  if (!/^(?:\w[\w.-]{0,95})\/(?:\w[\w.-]{0,95})$/.test(model) || /--|\.\.|[.-](?:$|\/)/.test(model))
    throw new ModelNotFoundError(
      model,
      `${JSON.stringify(model)} is neither a folder nor a Hugging Face id (org/name)`,
    );
  // The hub's library takes 20 ms to load, which local folders do without.
  const { resolveHubModel } = await import("./hub.ts");
  return resolveHubModel(model, options);
}
