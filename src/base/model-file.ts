import { lstatSync, readFileSync, realpathSync, statSync } from "node:fs";
import { basename, dirname, join, resolve, sep } from "node:path";
import { ModelDataError, ModelNotFoundError, messageOf } from "./errors.ts";
import { isJsonObject, type JsonObject } from "./json-object.ts";

/**
 * The path of a file in a model folder, once it is known to be one that may be read: regular, and inside the folder
 * whatever links lead to it. In a Hugging Face cache, links into the repository's own blobs are allowed, too. This holds
 * for every file of a model, and the folder itself may be reached by any link.
 * @returns undefined if there is nothing of that name
 * @throws ModelNotFoundError for a link to nothing, ModelDataError for a file that may not be read
 */
export function findModelFile(folder: string, name: string): string | undefined {
  const path = join(folder, name);
  if (lstatSync(path, { throwIfNoEntry: false }) === undefined) return undefined;
  let target: string;
  let root: string;
  try {
    target = realpathSync(path);
    root = realpathSync(folder);
  } catch (error) {
    throw new ModelNotFoundError(path, `${path} does not exist`, { cause: error });
  }
  const cached = basename(dirname(root)) === "snapshots";
  const inBlobs = cached && dirname(target) === resolve(root, "../../blobs");
  if (!target.startsWith(root + sep) && !inBlobs)
    throw new ModelDataError(path, "is a link to a file outside the model folder");
  if (!statSync(target).isFile()) throw new ModelDataError(path, "not a regular file");
  return path;
}

/**
 * The text of a file in a model folder, which must be UTF-8.
 * @returns undefined if there is no such file
 * @throws ModelNotFoundError, ModelDataError as `findModelFile`, and for a file of more than `maxBytes`
 */
export function readModelText(folder: string, name: string, maxBytes: number): string | undefined {
  const path = findModelFile(folder, name);
  if (path === undefined) return undefined;
  if (statSync(path).size > maxBytes) throw new ModelDataError(path, `larger than ${maxBytes} bytes`);
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(readFileSync(path));
  } catch (cause) {
    throw new ModelDataError(path, `cannot be read as UTF-8: ${messageOf(cause)}`, { cause });
  }
}

/** The same for a JSON object. */
export function readModelJson(folder: string, name: string, maxBytes: number): JsonObject | undefined {
  const text = readModelText(folder, name, maxBytes);
  if (text === undefined) return undefined;
  const path = join(folder, name);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new ModelDataError(path, `cannot be read as JSON: ${messageOf(cause)}`, { cause });
  }
  if (!isJsonObject(value)) throw new ModelDataError(path, "not a JSON object");
  return value;
}
