const TAB = 8;
/** Of a terminal that does not say how wide it is, as one of a CI job or an editor. */
const DEFAULT_COLUMNS = 80;

/**
 * Breaks text that arrives in pieces between words, so that no line is wider than the terminal. A word is held back
 * until its end is known; one as wide as a line is cut. Wide characters (Chinese, Japanese, Korean) may part anywhere.
 */
export class WordWrap {
  #column = 0;
  #space = "";
  #word = "";

  /** @param columns of the terminal, which may change; 0: it does not say. */
  constructor(private readonly columns: () => number) {}

  /** Takes more text; returns the part of all text so far that can be written. */
  push(text: string): string {
    let out = "";
    for (const character of text) {
      if (character === "\n") {
        out += `${this.#placeWord()}\n`;
        this.#column = 0;
        this.#space = "";
      } else if (character === " " || character === "\t") {
        out += this.#placeWord();
        this.#space += character;
      } else {
        this.#word += character;
        const isWide = Bun.stringWidth(character) > 1;
        if (isWide || Bun.stringWidth(this.#word) >= this.#width) out += this.#placeWord();
      }
    }
    return out;
  }

  /** The word held back, at the end of the text. The next text begins a line. */
  end(): string {
    const rest = this.#placeWord();
    this.#column = 0;
    this.#space = "";
    return rest;
  }

  get #width(): number {
    return this.columns() || DEFAULT_COLUMNS;
  }

  #placeWord(): string {
    if (this.#word === "") return "";
    const word = this.#word;
    const space = this.#space;
    const width = Bun.stringWidth(word);
    const start = this.#after(space);
    this.#word = "";
    this.#space = "";
    if (start > 0 && start + width > this.#width) {
      const lineBreak = this.#column > 0 ? "\n" : "";
      this.#column = width;
      return lineBreak + word;
    }
    this.#column = start + width;
    return space + word;
  }

  /** The column after spaces and tabs. */
  #after(space: string): number {
    let column = this.#column;
    for (const character of space) column = character === "\t" ? column - (column % TAB) + TAB : column + 1;
    return column;
  }
}
