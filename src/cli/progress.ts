import { Presets, SingleBar } from "cli-progress";
import type { LoadProgress } from "../load-model.ts";

/** Progress bars on standard error; silent where it is no terminal. */
export class ProgressBar {
  #bar: SingleBar | undefined;
  #title = "";

  /** Shows `title` at `value` of `total`; a new title starts a new bar. */
  update(title: string, value: number, total: number, suffix = ""): void {
    if (!process.stderr.isTTY) return;
    if (this.#bar === undefined || title !== this.#title) {
      this.stop();
      this.#title = title;
      this.#bar = new SingleBar(
        {
          format: "{title} {bar} {percentage}% {suffix}",
          stream: process.stderr,
          clearOnComplete: true,
          hideCursor: true,
        },
        Presets.shades_classic,
      );
      this.#bar.start(total, value, { title, suffix });
    } else this.#bar.update(value, { title, suffix });
  }

  /** Shows how a model loads. */
  load({ phase, loadedBytes, totalBytes }: LoadProgress): void {
    const title = phase === "download" ? "Downloading" : "Loading";
    this.update(title, loadedBytes, totalBytes, `${(totalBytes / 2 ** 20).toFixed(0)} MiB`);
  }

  stop(): void {
    this.#bar?.stop();
    this.#bar = undefined;
  }
}
