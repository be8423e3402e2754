import { ModelDataError } from "../base/errors.ts";
import { quoted } from "../base/quoted.ts";
import { readFully } from "../base/read-fully.ts";

/** Bytes of the largest header that is read: vocabularies of 250,000 tokens take some 15 MiB. */
export const MAX_HEADER_BYTES = 128 * 2 ** 20;
const FIRST_READ_BYTES = 2 ** 20;

/**
 * A cursor over the beginning of a file, of which no more is read than it is asked for, twice over. What the file says
 * of lengths is never believed: memory grows with what has been read.
 */
export class HeaderReader {
  #bytes = Buffer.alloc(0);
  #at = 0;

  constructor(
    readonly path: string,
    private readonly fd: number,
    private readonly fileSize: number,
  ) {}

  /** Offset in the file of what is read next. */
  get position(): number {
    return this.#at;
  }

  /** The part of the file that has been read, from its beginning on. */
  get bytes(): Buffer {
    return this.#bytes;
  }

  /** Bytes of the file from `position` on. */
  get remaining(): number {
    return this.fileSize - this.#at;
  }

  /** Moves on by `length` bytes. @param what the part of the file that they are, for messages */
  skip(length: number, what: string): number {
    const start = this.#at;
    const end = start + length;
    if (end > this.fileSize) throw this.error(`the file ends within ${what}`);
    if (end > MAX_HEADER_BYTES)
      throw this.error(
        `${what} lies beyond the first ${MAX_HEADER_BYTES} bytes, which a header may not exceed`,
      );
    if (end > this.#bytes.length) this.#grow(end);
    this.#at = end;
    return start;
  }

  u8(what: string): number {
    const at = this.skip(1, what);
    return this.#bytes[at]!;
  }

  u32(what: string): number {
    const at = this.skip(4, what);
    return this.#bytes.readUInt32LE(at);
  }

  /** A count or an offset. @throws ModelDataError for more than a number holds exactly */
  u64(what: string): number {
    const at = this.skip(8, what);
    const value = this.#bytes.readUInt32LE(at) + this.#bytes.readUInt32LE(at + 4) * 2 ** 32;
    if (!Number.isSafeInteger(value)) throw this.error(`${what} is ${value}, beyond any file`);
    return value;
  }

  /** Moves past a string. @returns where its bytes begin and end */
  skipString(what: string): readonly [start: number, end: number] {
    const length = this.u64(`the length of ${what}`);
    const start = this.skip(length, what);
    return [start, this.#at];
  }

  /** A string of at most `maxBytes`. */
  string(maxBytes: number, what: string): string {
    const length = this.u64(`the length of ${what}`);
    if (length > maxBytes) throw this.error(`${what} has ${length} bytes, at most ${maxBytes} are allowed`);
    const start = this.skip(length, what);
    return decodeUtf8(this.path, this.#bytes, start, this.#at, what);
  }

  error(rule: string): ModelDataError {
    return new ModelDataError(this.path, rule);
  }

  #grow(end: number): void {
    const size = Math.max(end, 2 * this.#bytes.length, FIRST_READ_BYTES);
    const grown = Buffer.allocUnsafe(Math.min(size, this.fileSize, MAX_HEADER_BYTES));
    const read = this.#bytes.length;
    this.#bytes.copy(grown);
    readFully(this.path, this.fd, grown.subarray(read), read);
    this.#bytes = grown;
  }
}

const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** The text of bytes that must be UTF-8. @throws ModelDataError naming `what` */
export function decodeUtf8(path: string, bytes: Buffer, start: number, end: number, what: string): string {
  const text = bytes.toString("utf8", start, end);
  // Only where the lenient and fast decoder may have replaced something is it worth asking the strict one.
  if (!text.includes("\ufffd")) return text;
  try {
    return strict.decode(bytes.subarray(start, end));
  } catch (cause) {
    throw new ModelDataError(path, `${what} is not UTF-8: ${quoted(text)}`, { cause });
  }
}
