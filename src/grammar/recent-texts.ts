/** Values of texts: those that were used last are kept, as far as a number of characters goes, but at least one. */
export class RecentTexts<Value> {
  /** Least recently used first. */
  readonly #entries = new Map<string, { readonly value: Value; readonly characters: number }>();
  #characters = 0;

  /** @param drop called with each value that is not kept any longer */
  constructor(
    private readonly limit: number,
    private readonly drop: (value: Value) => void = () => {},
  ) {}

  /** Texts that are kept. */
  get size(): number {
    return this.#entries.size;
  }

  has(text: string): boolean {
    return this.#entries.has(text);
  }

  /** The text's value, which is the one used last from here on. */
  get(text: string): Value | undefined {
    const entry = this.#entries.get(text);
    if (!entry) return undefined;
    this.#entries.delete(text);
    this.#entries.set(text, entry);
    return entry.value;
  }

  /** Keeps the value of a text that has none. @param characters what it counts for; default: the text's length */
  add(text: string, value: Value, characters = text.length): void {
    this.#entries.set(text, { value, characters });
    this.#characters += characters;
    for (const [oldest, entry] of this.#entries) {
      if (this.#characters <= this.limit || oldest === text) break;
      this.#entries.delete(oldest);
      this.#characters -= entry.characters;
      this.drop(entry.value);
    }
  }
}
