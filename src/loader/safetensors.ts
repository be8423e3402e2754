import { closeSync, constants, fstatSync, openSync } from "node:fs";
import { invariant, ModelDataError, ModelNotFoundError, messageOf } from "../base/errors.ts";
import { readFully } from "../base/read-fully.ts";
import { MAX_HEADER_BYTES, parseSafetensorsHeader, type SafetensorsEntry } from "./safetensors-header.ts";

export type { SafetensorsEntry } from "./safetensors-header.ts";

/**
 * An open safetensors file with a validated header. Data is read through `fd` with positioned reads, never mapped: a
 * file that is truncated meanwhile gives an error, not a signal.
 */
export class SafetensorsFile implements Disposable {
  #fd: number | undefined;

  private constructor(
    readonly path: string,
    fd: number,
    /** Tensors in the order of their data. */
    readonly tensors: ReadonlyMap<string, SafetensorsEntry>,
  ) {
    this.#fd = fd;
  }

  /**
   * Opens a file and validates its header. The caller closes it.
   * @throws ModelNotFoundError when it cannot be opened; ModelDataError naming the file and the rule it breaks.
   */
  static open(path: string): SafetensorsFile {
    let fd: number;
    try {
      // Opening a FIFO without O_NONBLOCK would wait for a writer.
      fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
    } catch (error) {
      throw new ModelNotFoundError(path, `cannot open ${path}: ${messageOf(error)}`, { cause: error });
    }
    try {
      return new SafetensorsFile(path, fd, readHeader(path, fd));
    } catch (error) {
      closeSync(fd);
      throw error;
    }
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

function readHeader(path: string, fd: number): ReadonlyMap<string, SafetensorsEntry> {
  const stat = fstatSync(fd);
  if (!stat.isFile()) throw new ModelDataError(path, "not a regular file");
  if (stat.size < 8) throw new ModelDataError(path, `${stat.size} bytes are too few for a safetensors file`);
  const prefix = Buffer.alloc(8);
  readFully(path, fd, prefix, 0);
  const length = prefix.readBigUInt64LE();
  if (length > BigInt(MAX_HEADER_BYTES))
    throw new ModelDataError(path, `header of ${length} bytes, at most ${MAX_HEADER_BYTES} are allowed`);
  if (8n + length > BigInt(stat.size))
    throw new ModelDataError(path, `header of ${length} bytes runs past the file's ${stat.size}`);
  const header = new Uint8Array(Number(length));
  readFully(path, fd, header, 8);
  return parseSafetensorsHeader(path, header, stat.size);
}
