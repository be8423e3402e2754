/** Characters after which a part is complete: small enough to be encoded at once, large enough to be few. */
const PART_LENGTH = 32 * 1024;

/**
 * The entries of a JSON list as text, in parts of moderate length: a list that many replies share, or one of megabytes, is
 * never one string.
 */
export class JsonList {
  readonly #parts: string[] = [];
  #last = "";

  /** @param entry its JSON. */
  add(entry: string): void {
    this.#last += this.isEmpty ? entry : `,${entry}`;
    if (this.#last.length < PART_LENGTH) return;
    this.#parts.push(this.#last);
    this.#last = "";
  }

  get isEmpty(): boolean {
    return this.#last === "" && this.#parts.length === 0;
  }

  *parts(): Generator<string, void, undefined> {
    yield* this.#parts;
    if (this.#last !== "") yield this.#last;
  }
}

/** One JSON list of the entries of several. */
export function* joined(lists: readonly JsonList[]): Generator<string, void, undefined> {
  yield "[";
  let isFirst = true;
  for (const list of lists) {
    if (list.isEmpty) continue;
    if (!isFirst) yield ",";
    isFirst = false;
    yield* list.parts();
  }
  yield "]";
}

/** The same text in as few parts as their moderate length allows. */
export function* merged(parts: Iterable<string>): Generator<string, void, undefined> {
  let text = "";
  for (const part of parts) {
    text += part;
    if (text.length < PART_LENGTH) continue;
    yield text;
    text = "";
  }
  if (text !== "") yield text;
}

/** Fills a list from values, of which there may be many: other work gets its turn in between. */
export async function fill<T>(values: Iterable<T>, add: (value: T) => void): Promise<void> {
  let count = 0;
  for (const value of values) {
    add(value);
    if (++count % TURN === 0) await new Promise<void>((resolve) => setImmediate(resolve));
  }
}

/** Positions that are written in a turn of the event loop, each with up to some dozens of entries. */
const TURN = 64;
