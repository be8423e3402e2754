import { closeSync, constants, fstatSync, openSync, readSync, statSync } from "node:fs";
import { invariant, ModelDataError, ModelNotFoundError, messageOf } from "../base/errors.ts";
import { GGUF_MAGIC, type GgufHeader, readHeader } from "./header.ts";
import { HeaderReader } from "./header-reader.ts";

/**
 * An open GGUF file with a validated header. Data is read through `fd` with positioned reads, never mapped: a file that is
 * truncated meanwhile gives an error, not a signal.
 */
export class GgufFile implements Disposable {
  #fd: number | undefined;

  private constructor(
    readonly path: string,
    fd: number,
    readonly header: GgufHeader,
  ) {
    this.#fd = fd;
  }

  /**
   * Opens a file and validates its header. The caller closes it.
   * @throws ModelNotFoundError when it cannot be opened; ModelDataError naming the file and the rule it breaks.
   */
  static open(path: string): GgufFile {
    const fd = openFile(path);
    try {
      const stat = fstatSync(fd);
      if (!stat.isFile()) throw new ModelDataError(path, "not a regular file");
      return new GgufFile(path, fd, readHeader(new HeaderReader(path, fd, stat.size), stat.size));
    } catch (error) {
      closeSync(fd);
      throw error;
    }
  }

  /** The header alone, validated. @throws as `open` */
  static header(path: string): GgufHeader {
    using file = GgufFile.open(path);
    return file.header;
  }

  /** The descriptor, good on every thread until `close`. */
  get fd(): number {
    invariant(this.#fd !== undefined, `${this.path} is read after close()`);
    return this.#fd;
  }

  /** Safe to call twice. */
  close(): void {
    if (this.#fd !== undefined) closeSync(this.#fd);
    this.#fd = undefined;
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** True if a model is one file, and so a GGUF file, rather than a folder. */
export function isGgufModel(model: string): boolean {
  return statSync(model, { throwIfNoEntry: false })?.isFile() === true;
}

/** True if a file begins as GGUF files do, whatever it is called. */
export function hasGgufMagic(path: string): boolean {
  const fd = openFile(path);
  try {
    const magic = Buffer.alloc(4);
    return readSync(fd, magic, 0, 4, 0) === 4 && magic.readUInt32LE() === GGUF_MAGIC;
  } finally {
    closeSync(fd);
  }
}

function openFile(path: string): number {
  try {
    // Opening a FIFO without O_NONBLOCK would wait for a writer.
    return openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    throw new ModelNotFoundError(path, `cannot open ${path}: ${messageOf(error)}`, { cause: error });
  }
}
