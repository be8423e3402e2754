const MAX_WORDS = 10_000;
const MAX_LENGTH = 64;

/** Remembers what is made of words: of short ones, until there are many. */
export class WordCache<T> {
  readonly #made = new Map<string, T>();

  constructor(private readonly make: (word: string) => T) {}

  of(word: string): T {
    const known = this.#made.get(word);
    if (known !== undefined) return known;
    const made = this.make(word);
    if (word.length > MAX_LENGTH) return made;
    if (this.#made.size >= MAX_WORDS) this.#made.clear();
    this.#made.set(word, made);
    return made;
  }
}
