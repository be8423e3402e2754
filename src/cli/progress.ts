import { MultiBar, Presets, SingleBar } from "cli-progress";
import { formatBytes } from "../base/bytes.ts";
import type { LoadProgress } from "../llm/load-model.ts";

const STYLE = {
  format: "{title} {bar} {percentage}% {suffix}",
  stream: process.stderr,
  clearOnComplete: true,
  // Signals stay the program's own, which may end it at any time: the terminal is left as it was.
  gracefulExit: false,
  hideCursor: false,
  linewrap: true,
};

/** Progress bars on standard error; silent where it is no terminal. */
export class ProgressBar implements Disposable {
  #bar: SingleBar | undefined;
  #title = "";

  /** Shows `title` at `value` of `total`; a new title starts a new bar. */
  update(title: string, value: number, total: number, suffix = ""): void {
    if (!process.stderr.isTTY) return;
    if (this.#bar === undefined || title !== this.#title) {
      this.stop();
      this.#title = title;
      this.#bar = new SingleBar(STYLE, Presets.shades_classic);
      this.#bar.start(total, value, { title, suffix });
    } else this.#bar.update(value, { title, suffix });
  }

  /** Shows how a model loads. */
  load({ phase, loadedBytes, totalBytes }: LoadProgress): void {
    const title = phase === "download" ? "Downloading" : "Loading";
    this.update(title, loadedBytes, totalBytes, formatBytes(totalBytes));
  }

  stop(): void {
    this.#bar?.stop();
    this.#bar = undefined;
  }

  [Symbol.dispose](): void {
    this.stop();
  }
}

/** Several downloads at once, a bar each, on standard error; silent where it is no terminal. */
export class ProgressBars {
  readonly #all = new MultiBar(STYLE, Presets.shades_classic);
  readonly #bars = new Map<string, SingleBar>();

  update(title: string, loadedBytes: number, totalBytes: number): void {
    if (!process.stderr.isTTY) return;
    const payload = { title, suffix: formatBytes(totalBytes) };
    const bar = this.#bars.get(title) ?? this.#all.create(totalBytes, 0, payload);
    this.#bars.set(title, bar);
    bar.update(loadedBytes, payload);
  }

  stop(): void {
    this.#all.stop();
  }
}
