import { existsSync, readdirSync, statSync } from "node:fs";
import { basename, isAbsolute, join } from "node:path";
import { ModelDataError, ModelNotFoundError, UnsupportedModelError } from "../base/errors.ts";
import { isJsonObject } from "../base/json-object.ts";
import { findModelFile, readModelJson } from "../base/model-file.ts";
import { quoted, shown } from "../base/quoted.ts";
import { isGgufModel } from "../gguf/gguf-file.ts";
import type { CheckpointFormat, CheckpointTensor } from "./checkpoint-tensor.ts";
import { splitFusedExperts } from "./fused-experts.ts";
import { openGguf } from "./gguf-checkpoint.ts";
import { SafetensorsFile } from "./safetensors.ts";
import { textTensors } from "./text-tensors.ts";

export const SINGLE_FILE = "model.safetensors";
export const SHARD_INDEX = "model.safetensors.index.json";
const MAX_SHARDS = 1024;
const MAX_INDEX_BYTES = 64 * 1024 * 1024;

const SAFETENSORS: Pick<CheckpointFormat, "dtypes"> = { dtypes: ["BF16", "F16", "F32"] };

/**
 * A model's weights by their names in a Hugging Face checkpoint: of a folder `model.safetensors`, or the shards that
 * `model.safetensors.index.json` lists; or a GGUF file's.
 */
export class Checkpoint implements Disposable {
  private constructor(
    /** The folder or the file. */
    readonly path: string,
    readonly format: CheckpointFormat,
    readonly tensors: ReadonlyMap<string, CheckpointTensor>,
    private readonly files: readonly Disposable[],
  ) {}

  /**
   * Opens and validates every file of the checkpoint, which the caller disposes of.
   * @param model a folder or a GGUF file
   * @throws ModelNotFoundError when there are no weights; UnsupportedModelError when there are only pickled ones;
   * ModelDataError when a file is malformed or index and shards disagree.
   */
  static open(model: string): Checkpoint {
    if (!isGgufModel(model)) return Checkpoint.#openFolder(model);
    const { opened, format, tensors } = openGguf(model);
    return new Checkpoint(model, format, tensors, [opened]);
  }

  static #openFolder(folder: string): Checkpoint {
    if (!existsSync(folder) || !statSync(folder).isDirectory())
      throw new ModelNotFoundError(folder, `model folder ${folder} does not exist`);
    const single = findModelFile(folder, SINGLE_FILE) !== undefined;
    if (!single && findModelFile(folder, SHARD_INDEX) === undefined)
      throw noWeights(folder, readdirSync(folder));
    const weightMap = single ? undefined : readShardIndex(folder);
    const names = weightMap === undefined ? [SINGLE_FILE] : [...new Set(weightMap.values())];

    const files: SafetensorsFile[] = [];
    try {
      const tensors = new Map<string, CheckpointTensor>();
      for (const name of names) {
        const path = findModelFile(folder, name);
        if (path === undefined) throw missing(join(folder, name));
        const file = SafetensorsFile.open(path);
        files.push(file);
        for (const [tensor, entry] of file.tensors) {
          const other = tensors.get(tensor)?.file;
          if (other !== undefined)
            throw new ModelDataError(
              file.path,
              `tensor ${quoted(tensor)} is also in ${basename(other.path)}`,
            );
          if (weightMap !== undefined && weightMap.get(tensor) !== name)
            throw new ModelDataError(
              file.path,
              `${SHARD_INDEX} does not place tensor ${quoted(tensor)} in this shard`,
            );
          tensors.set(tensor, { ...entry, file });
        }
      }
      for (const [tensor, name] of weightMap ?? []) {
        if (!tensors.has(tensor))
          throw new ModelDataError(
            join(folder, SHARD_INDEX),
            `tensor ${quoted(tensor)} is not in ${shown(name)}`,
          );
      }
      const text = textTensors(splitFusedExperts(tensors));
      return new Checkpoint(folder, { ...SAFETENSORS, storedName: text.storedName }, text.tensors, files);
    } catch (error) {
      for (const file of files) file.close();
      throw error;
    }
  }

  /** Closes every file. Safe to call twice. */
  [Symbol.dispose](): void {
    for (const file of this.files) file[Symbol.dispose]();
  }
}

/**
 * Tensor name → shard name, from a `model.safetensors.index.json`. Shard names are relative, without `..`.
 * @throws ModelNotFoundError when it does not exist; ModelDataError when it is malformed.
 */
export function readShardIndex(folder: string): ReadonlyMap<string, string> {
  const path = join(folder, SHARD_INDEX);
  const root = readModelJson(folder, SHARD_INDEX, MAX_INDEX_BYTES);
  if (root === undefined) throw missing(path);
  const map = new Map<string, string>();
  const weightMap = isJsonObject(root["weight_map"]) ? root["weight_map"] : {};
  for (const [tensor, shard] of Object.entries(weightMap)) {
    if (typeof shard !== "string" || !isInsideName(shard))
      throw new ModelDataError(path, `the shard name of ${quoted(tensor)} does not stay inside the folder`);
    map.set(tensor, shard);
  }
  if (map.size === 0) throw new ModelDataError(path, "weight_map must map tensor names to shard names");
  const shards = new Set(map.values()).size;
  if (shards > MAX_SHARDS)
    throw new ModelDataError(path, `${shards} shards, at most ${MAX_SHARDS} are allowed`);
  return map;
}

/** The error for a folder or listing without safetensors weights. */
export function noWeights(
  model: string,
  files: readonly string[],
): ModelNotFoundError | UnsupportedModelError {
  const pickle = files.find(
    (name) => /\.(?:bin|pt|pth|ckpt)$/.test(name) && !name.startsWith("training_args"),
  );
  const gguf = files.find((name) => name.endsWith(".gguf"));
  const instead = gguf === undefined ? "" : `; it has GGUF files: name one, such as ${gguf}, by its path`;
  return pickle === undefined
    ? new ModelNotFoundError(model, `${model} has neither ${SINGLE_FILE} nor ${SHARD_INDEX}${instead}`)
    : new UnsupportedModelError(model, `pickle weights unsupported: found ${pickle}, but no safetensors`);
}

function isInsideName(name: string): boolean {
  return name.endsWith(".safetensors") && !isAbsolute(name) && !/(?:^|[/\\])\.\.(?:[/\\]|$)|\0/.test(name);
}

function missing(path: string): ModelNotFoundError {
  return new ModelNotFoundError(path, `${path} does not exist`);
}
