import { basename, dirname, join } from "node:path";
import { ModelDataError, ModelNotFoundError } from "../base/errors.ts";
import { findModelFile } from "../base/model-file.ts";
import { quoted } from "../base/quoted.ts";
import { GgufFile } from "./gguf-file.ts";
import type { GgufTensor } from "./header.ts";
import type { GgufMetadata } from "./metadata.ts";

/** The name of a part of a model that is split among files: which one it is, counted from 1, and of how many. */
const PART_NAME = /-(\d{5})-of-(\d{5})\.gguf$/;
const MAX_PARTS = 1024;

export interface PlacedTensor extends GgufTensor {
  readonly file: GgufFile;
}

/** The open files of a model: one, or those that it is split among, of which the first has the metadata. */
export class GgufModel implements Disposable {
  private constructor(
    readonly metadata: GgufMetadata,
    readonly tensors: ReadonlyMap<string, PlacedTensor>,
    private readonly files: readonly GgufFile[],
  ) {}

  /**
   * Opens and validates every file, which the caller closes.
   * @param path of the file, or of the first
   * @throws ModelNotFoundError when one cannot be opened; ModelDataError naming the file and the rule that it breaks, and when
   * files do not belong together.
   */
  static open(path: string): GgufModel {
    const files = [GgufFile.open(path)];
    try {
      const { metadata } = files[0]!.header;
      for (const part of otherParts(path, metadata)) files.push(openPart(part));
      const tensors = new Map<string, PlacedTensor>();
      for (const file of files) {
        for (const [name, tensor] of file.header.tensors) {
          const other = tensors.get(name)?.file;
          if (other !== undefined)
            throw new ModelDataError(file.path, `tensor ${quoted(name)} is also in ${basename(other.path)}`);
          tensors.set(name, { ...tensor, file });
        }
      }
      const count = metadata.number("split.tensors.count") ?? tensors.size;
      if (count !== tensors.size)
        throw new ModelDataError(
          path,
          `split.tensors.count is ${count}, but there are ${tensors.size} tensors`,
        );
      return new GgufModel(metadata, tensors, files);
    } catch (error) {
      for (const file of files) file.close();
      throw error;
    }
  }

  /** Closes every file. Safe to call twice. */
  [Symbol.dispose](): void {
    for (const file of this.files) file.close();
  }
}

/** True if a file is named as a part of a split model that is not the first. */
export function isLaterPart(name: string): boolean {
  const number = PART_NAME.exec(name)?.[1];
  return number !== undefined && Number(number) !== 1;
}

/** A file that a model is split among. */
interface Part {
  readonly folder: string;
  readonly name: string;
  /** From 0. */
  readonly number: number;
  readonly count: number;
}

/** The parts besides the first. */
function otherParts(path: string, metadata: GgufMetadata): Part[] {
  const count = metadata.number("split.count") ?? 1;
  if (count === 1) return [];
  if (!Number.isSafeInteger(count) || count < 1 || count > MAX_PARTS)
    throw metadata.invalid("split.count", `a number of files from 1 to ${MAX_PARTS}`);
  const [folder, name] = [dirname(path), basename(path)];
  const digits = (number: number) => String(number).padStart(5, "0");
  const nameOf = (number: number) =>
    `${name.replace(PART_NAME, "").replace(/\.gguf$/, "")}-${digits(number + 1)}-of-${digits(count)}.gguf`;
  const what = `part ${metadata.number("split.no") ?? 0} of a model that is split among ${count} files`;
  if (metadata.number("split.no") !== 0)
    throw new ModelDataError(path, `${what}: the first must be named, such as ${nameOf(0)}`);
  if (name !== nameOf(0)) throw new ModelDataError(path, `${what}, and must be called ${nameOf(0)}`);
  return Array.from({ length: count - 1 }, (_, i) => ({ folder, name: nameOf(i + 1), number: i + 1, count }));
}

function openPart({ folder, name, number, count }: Part): GgufFile {
  const path = findModelFile(folder, name);
  if (path === undefined)
    throw new ModelNotFoundError(join(folder, name), `${join(folder, name)} does not exist`);
  const file = GgufFile.open(path);
  const { metadata } = file.header;
  try {
    if (metadata.number("split.no") !== number) throw metadata.invalid("split.no", `${number}`);
    if (metadata.number("split.count") !== count) throw metadata.invalid("split.count", `${count}`);
  } catch (error) {
    file.close();
    throw error;
  }
  return file;
}
