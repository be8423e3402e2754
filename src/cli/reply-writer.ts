import { harmless } from "./terminal-style.ts";
import { WordWrap } from "./word-wrap.ts";

const [DIM, PLAIN] = ["\x1b[2m", "\x1b[0m"] as const;

/** Writes a reply to a terminal, or to whatever else standard output is: there thoughts are left out. */
export class ReplyWriter {
  readonly #wrap: WordWrap | undefined;
  /** Thoughts have been written, and nothing else since. */
  #isThinking = false;

  /**
   * @param columns of the terminal; undefined: it is none.
   * @param isDim whether thoughts are dim.
   */
  constructor(
    private readonly write: (text: string) => void,
    columns: (() => number) | undefined,
    private readonly isDim: boolean,
  ) {
    this.#wrap = columns && new WordWrap(columns);
  }

  /** Takes more of what the model thinks, and then says; a terminal is shown its control characters, and does not obey them. */
  push({ thought, text }: { readonly thought: string; readonly text: string }): void {
    if (thought !== "" && this.#wrap) {
      this.#isThinking = true;
      this.#writeThought(this.#wrap.push(harmless(thought)));
    }
    if (text === "") return;
    this.#endThought("\n\n");
    this.write(this.#wrap?.push(harmless(text)) ?? text);
  }

  /** Ends the reply, and its line. */
  end(): void {
    this.#endThought("");
    this.write(`${this.#wrap?.end() ?? ""}\n`);
  }

  #endThought(after: string): void {
    if (!this.#isThinking) return;
    this.#isThinking = false;
    this.#writeThought(this.#wrap!.end());
    this.write(after);
  }

  #writeThought(text: string): void {
    if (text !== "") this.write(this.isDim ? DIM + text + PLAIN : text);
  }
}
