import { MultiBar, Presets, SingleBar } from "cli-progress";
import { formatBytes } from "../base/bytes.ts";
import type { LoadProgress } from "../llm/load-model.ts";
import { printNote } from "./command.ts";
import { isLive } from "./terminal-style.ts";

const STYLE = {
  format: "{title} {bar} {percentage}% {suffix}",
  stream: process.stderr,
  clearOnComplete: true,
  // Signals stay the program's own, which may end it at any time: the terminal is left as it was.
  gracefulExit: false,
  hideCursor: false,
  linewrap: true,
};

/** Time between lines of progress in a log. What takes less has none. */
const LINE_MS = 10_000;

/** Progress as lines of a log, where there is no terminal: one every ten seconds for each title, so that it is seen to go on. */
export class ProgressLines {
  /** When the next line of a title is due. */
  readonly #due = new Map<string, number>();

  constructor(
    private readonly write: (line: string) => void,
    private readonly now: () => number = () => performance.now(),
  ) {}

  update(title: string, value: number, total: number, suffix: string): void {
    const now = this.now();
    const due = this.#due.get(title);
    if (due === undefined || now >= due) this.#due.set(title, now + LINE_MS);
    if (due === undefined || now < due) return;
    const share = total > 0 ? Math.floor((100 * value) / total) : 0;
    this.write(`${title}: ${share}% ${suffix}`.trimEnd());
  }
}

/** A progress bar on standard error; lines now and then where it is no terminal. */
export class ProgressBar implements Disposable {
  readonly #lines = new ProgressLines(printNote);
  #bar: SingleBar | undefined;
  #title = "";

  /** Shows `title` at `value` of `total`; a new title starts a new bar. */
  update(title: string, value: number, total: number, suffix = ""): void {
    if (!isLive(process.stderr)) this.#lines.update(title, value, total, suffix);
    else if (this.#bar === undefined || title !== this.#title) {
      this.stop();
      this.#title = title;
      this.#bar = new SingleBar(STYLE, Presets.shades_classic);
      this.#bar.start(total, value, { title, suffix });
    } else this.#bar.update(value, { title, suffix });
  }

  /** Shows how a model loads. */
  load({ phase, loadedBytes, totalBytes }: LoadProgress): void {
    const title = phase === "download" ? "Downloading" : "Loading";
    this.update(title, loadedBytes, totalBytes, `of ${formatBytes(totalBytes)}`);
  }

  stop(): void {
    this.#bar?.stop();
    this.#bar = undefined;
  }

  [Symbol.dispose](): void {
    this.stop();
  }
}

/** Several downloads at once, a bar each, on standard error; lines now and then where it is no terminal. */
export class ProgressBars {
  readonly #lines = new ProgressLines(printNote);
  readonly #all = new MultiBar(STYLE, Presets.shades_classic);
  readonly #bars = new Map<string, SingleBar>();

  update(title: string, loadedBytes: number, totalBytes: number): void {
    const suffix = `of ${formatBytes(totalBytes)}`;
    if (isLive(process.stderr)) {
      const bar = this.#bars.get(title) ?? this.#all.create(totalBytes, 0, { title, suffix });
      this.#bars.set(title, bar);
      bar.update(loadedBytes, { title, suffix });
    } else this.#lines.update(title, loadedBytes, totalBytes, suffix);
  }

  stop(): void {
    this.#all.stop();
  }
}
