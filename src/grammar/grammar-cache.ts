import type { ResolvedOutputs } from "../base/structured-outputs.ts";
import { grammarOf } from "./grammar-source.ts";

/** Characters of requests and their grammars that are kept. */
const MAX_CHARACTERS = 8 * 2 ** 20;

/** The grammars of the requests that came last: many requests have the same schema. */
export class GrammarCache {
  /** By what was asked for, as JSON, least recently used first. */
  readonly #grammars = new Map<string, string>();
  #characters = 0;

  /** Grammars that are kept. */
  get size(): number {
    return this.#grammars.size;
  }

  /** Of plain outputs. @throws as `grammarOf` */
  grammarOf(outputs: ResolvedOutputs): string {
    const key = JSON.stringify(outputs);
    const known = this.#grammars.get(key);
    const grammar = known ?? grammarOf(outputs);
    if (known === undefined) this.#characters += key.length + grammar.length;
    else this.#grammars.delete(key);
    this.#grammars.set(key, grammar);
    for (const [oldest, { length }] of this.#grammars) {
      if (this.#characters <= MAX_CHARACTERS) break;
      this.#characters -= oldest.length + length;
      this.#grammars.delete(oldest);
    }
    return grammar;
  }
}
