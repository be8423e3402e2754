import type { ResolvedOutputs } from "../base/structured-outputs.ts";
import { grammarOf } from "./grammar-source.ts";
import { RecentTexts } from "./recent-texts.ts";
import { shapeGrammar, type TextShape } from "./text-shape.ts";

/** Characters of requests and their grammars that are kept. */
const MAX_CHARACTERS = 8 * 2 ** 20;

/** The grammars of the requests that came last: many requests have the same schema. */
export class GrammarCache {
  /** By their source as JSON. */
  readonly #grammars = new RecentTexts<string>(MAX_CHARACTERS);

  /** Grammars that are kept. */
  get size(): number {
    return this.#grammars.size;
  }

  /** Of plain outputs. @throws as `grammarOf` */
  grammarOf(outputs: ResolvedOutputs): string {
    return this.#cached(outputs, () => grammarOf(outputs));
  }

  /** Of a turn. @throws as `shapeGrammar` */
  shapeGrammar(shape: TextShape, param: string): string {
    return this.#cached([shape, param], () => shapeGrammar(shape, param));
  }

  #cached(source: unknown, make: () => string): string {
    const key = JSON.stringify(source);
    const known = this.#grammars.get(key);
    if (known !== undefined) return known;
    const made = make();
    this.#grammars.add(key, made, key.length + made.length);
    return made;
  }
}
