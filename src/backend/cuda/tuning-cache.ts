import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

/**
 * Choices that were found by timing, by name, in one file: for the next start of the same `versions`, which is all that they
 * depend on, one a line. A file that is missing or damaged is as good as none, and one that cannot be written costs nothing
 * but the timing.
 */
export class TuningCache {
  readonly #choices = new Map<string, unknown>();
  readonly #path: string;
  #dirty = false;

  constructor(
    private readonly folder: string,
    versions: readonly (string | number | bigint)[],
  ) {
    this.#path = join(folder, `gemm-${sha256(versions.join("\n")).slice(0, 32)}`);
    try {
      const [digest, text] = readFileSync(this.#path, "utf8").split("\n");
      if (text === undefined || digest !== sha256(text)) return;
      for (const [name, choice] of Object.entries(JSON.parse(text))) this.#choices.set(name, choice);
    } catch {
      // There is no file yet.
    }
  }

  get<T>(name: string): T | undefined {
    return this.#choices.get(name) as T | undefined;
  }

  set(name: string, choice: unknown): void {
    this.#choices.set(name, choice);
    this.#dirty = true;
  }

  /** Writes what is new. */
  save(): void {
    if (!this.#dirty) return;
    this.#dirty = false;
    const text = JSON.stringify(Object.fromEntries(this.#choices));
    try {
      mkdirSync(this.folder, { recursive: true, mode: 0o700 });
      writeFileSync(this.#path, `${sha256(text)}\n${text}`);
    } catch {
      // The choices are made again at the next start.
    }
  }
}

function sha256(text: string): string {
  return new Bun.CryptoHasher("sha256").update(text).digest("hex");
}
