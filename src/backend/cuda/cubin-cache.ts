import { mkdirSync, readFileSync, renameSync, unlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { messageOf } from "../../base/errors.ts";

/** An entry is `MAGIC`, the SHA-256 of the cubin, the cubin: a torn or altered file is as good as none. */
const MAGIC = Buffer.from("OCTAVO01");
const HEADER_BYTES = MAGIC.length + 32;

/** Compiled kernels on disk. Every failure to read or write is a miss: the cache is never in the way. */
export class CubinCache {
  #warned = false;

  constructor(
    readonly folder: string,
    private readonly warn: (message: string) => void,
  ) {}

  get(key: string): Uint8Array<ArrayBuffer> | undefined {
    let entry: Buffer<ArrayBuffer>;
    try {
      entry = readFileSync(this.#path(key));
    } catch {
      return undefined;
    }
    const cubin = new Uint8Array(entry.subarray(HEADER_BYTES));
    const intact =
      entry.subarray(0, MAGIC.length).equals(MAGIC) &&
      entry.subarray(MAGIC.length, HEADER_BYTES).equals(sha256(cubin));
    return intact ? cubin : undefined;
  }

  /** Readers see the whole entry or none: it is written aside and renamed. */
  put(key: string, cubin: Uint8Array): void {
    const path = this.#path(key);
    const aside = `${path}.${process.pid}.${crypto.randomUUID()}`;
    try {
      mkdirSync(this.folder, { recursive: true, mode: 0o700 });
      writeFileSync(aside, Buffer.concat([MAGIC, sha256(cubin), cubin]));
      renameSync(aside, path);
    } catch (error) {
      discard(aside);
      if (this.#warned) return;
      this.#warned = true;
      this.warn(`kernels are compiled at every start: ${this.folder} is not writable (${messageOf(error)})`);
    }
  }

  #path(key: string): string {
    return join(this.folder, `${key}.cubin`);
  }
}

/** Removes what a failed write may have left. */
function discard(path: string): void {
  try {
    unlinkSync(path);
  } catch {
    // It was never made, or the disk refuses this too: the reason is reported either way.
  }
}

function sha256(bytes: Uint8Array): Buffer {
  return new Bun.CryptoHasher("sha256").update(bytes).digest();
}
