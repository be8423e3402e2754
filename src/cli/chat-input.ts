import { createInterface } from "node:readline";
import type { PassThrough } from "node:stream";
import { PASTE_OFF, PASTE_ON, TerminalKeys } from "./terminal-keys.ts";

const QUOTES = '"""';

/** Something said in a chat. */
export interface ChatLine {
  readonly text: string;
  /** A line of its own, which may be a command; not a block or several pasted lines. */
  readonly plain: boolean;
}

/** Messages from standard input: a line each, or lines between `"""`. */
export class ChatInput implements Disposable {
  /** A line is edited in the terminal, rather than read from a pipe. */
  readonly interactive = Boolean(process.stdin.isTTY && process.stdout.isTTY);
  readonly #keys = new TerminalKeys(() => this.#interrupt());
  readonly #editor = createInterface(
    this.interactive
      ? { input: asTerminal(this.#keys.editor), output: process.stdout, terminal: true }
      : { input: process.stdin, terminal: false },
  );
  readonly #lines: string[] = [];
  #closed = false;
  /** A line is waited for. */
  #reading = false;
  /** The text typed since the last message is dropped. */
  #cancelled = false;
  #wake = () => {};

  /** @param onInterrupt Called for each Ctrl-C, and each SIGINT that comes from elsewhere. */
  constructor(private readonly onInterrupt: () => void) {
    this.#editor.on("line", (line) => {
      this.#lines.push(line);
      this.#wake();
    });
    this.#editor.on("close", () => {
      this.#closed = true;
      this.#wake();
    });
    // In raw mode Ctrl-C is a key, which the editor reports; otherwise it is a signal.
    this.#editor.on("SIGINT", this.#interrupt);
    process.on("SIGINT", this.#interrupt);
    if (!this.interactive) return;
    process.stdin.setEncoding("utf8").on("data", (keys: string) => this.#keys.write(keys));
    process.stdin.on("end", () => this.#editor.close());
    process.stdout.write(PASTE_ON);
    process.on("exit", this.#restore);
  }

  /** The messages in order, those included that came before they were asked for. */
  async *messages(): AsyncGenerator<ChatLine, void, undefined> {
    for (;;) {
      this.#cancelled = false;
      const line = await this.#line("> ");
      if (line === undefined) return;
      if (!line.startsWith(QUOTES)) {
        const text = this.#keys.expand(line);
        if (!this.#cancelled) yield { text, plain: !text.includes("\n") };
        continue;
      }
      let block = line.slice(QUOTES.length);
      while (!block.endsWith(QUOTES) && !this.#cancelled) {
        const more = await this.#line("... ");
        if (more === undefined) break;
        block += `\n${more}`;
      }
      const text = this.#keys.expand(block.replace(/"""$/, ""));
      if (!this.#cancelled) yield { text, plain: false };
    }
  }

  [Symbol.dispose](): void {
    process.off("SIGINT", this.#interrupt);
    this.#editor.close();
    if (!this.interactive) return;
    process.off("exit", this.#restore);
    this.#restore();
  }

  /** The next line; undefined at the end of the input. */
  async #line(prompt: string): Promise<string | undefined> {
    if (this.#closed && this.#lines.length === 0) return undefined;
    if (this.interactive) {
      this.#editor.setPrompt(prompt);
      this.#editor.prompt();
      this.#keys.openLine();
    }
    this.#reading = true;
    while (this.#lines.length === 0 && !this.#closed && !this.#cancelled) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    this.#reading = false;
    return this.#lines.shift() ?? (this.#cancelled ? "" : undefined);
  }

  readonly #interrupt = (): void => {
    if (this.#reading && this.interactive) {
      this.#editor.write(null, { ctrl: true, name: "e" });
      this.#editor.write(null, { ctrl: true, name: "u" });
    }
    this.onInterrupt();
    if (!this.#reading) return;
    this.#cancelled = true;
    this.#wake();
  };

  readonly #restore = (): void => {
    process.stdout.write(PASTE_OFF);
    process.stdin.setRawMode(false);
  };
}

/** Lets the editor set the terminal's mode, which it does when it begins, ends, is suspended and goes on. */
function asTerminal(input: PassThrough): PassThrough {
  return Object.assign(input, { setRawMode: (raw: boolean) => process.stdin.setRawMode(raw) });
}
