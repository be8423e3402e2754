import { join } from "node:path";
import { eventually } from "../support.ts";

const ROOT = join(import.meta.dir, "../..");

/** A script of the repository in a terminal of its own. */
export class TerminalSession {
  #output = "";
  readonly #child: Bun.Subprocess;
  readonly #decoder = new TextDecoder();

  constructor(script: string, args: readonly string[], columns = 80) {
    this.#child = Bun.spawn([process.execPath, "run", join(ROOT, script), ...args], {
      terminal: {
        ...{ cols: columns, rows: 24 },
        data: (_, bytes) => {
          this.#output += this.#decoder.decode(bytes, { stream: true });
        },
      },
      // The terminal is this one, whatever the tests' own is; where there are GPUs, these tests see none.
      env: { ...process.env, TERM: "xterm-256color", CUDA_VISIBLE_DEVICES: "", NO_COLOR: "" },
    });
  }

  /** All that the program wrote, escape sequences included. */
  get output(): string {
    return this.#output;
  }

  /** What it wrote as plain lines, with trailing spaces cut off. */
  get lines(): readonly string[] {
    const plain = Bun.stripANSI(this.#output).replace(/\r+\n/g, "\n");
    return plain.split("\n").map((line) => line.trimEnd());
  }

  type(keys: string): void {
    this.#child.terminal!.write(keys);
  }

  /** Waits until the text has been written `count` times. */
  async shows(text: string, count = 1): Promise<void> {
    await eventually(() => this.#output.split(text).length > count);
  }

  /** The exit code, once the program has ended and all it wrote has arrived. */
  async ended(): Promise<number> {
    const code = await this.#child.exited;
    // What is in the terminal's buffer comes after the end of the process.
    for (let length = -1; length !== this.#output.length; await Bun.sleep(20)) length = this.#output.length;
    return code;
  }

  [Symbol.dispose](): void {
    this.#child.kill("SIGKILL");
    this.#child.terminal?.close();
  }
}
