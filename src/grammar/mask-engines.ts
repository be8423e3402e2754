import type { PackedTokens } from "../tokenizer/token-table.ts";
import { MaskEngine } from "./mask-engine.ts";

/** The engines of one vocabulary: one for each set of tokens that grammars ask for as markers. */
export class MaskEngines {
  readonly #engines = new Map<string, Promise<MaskEngine>>();

  /** @param vocabSize width of the logits; ids without a token are never allowed */
  constructor(
    private readonly tokens: PackedTokens,
    readonly vocabSize: number,
  ) {}

  /** @param markers tokens that stand for themselves: most requests have none, others those of the model's turns. */
  of(markers: readonly number[]): Promise<MaskEngine> {
    const key = markers.toSorted((a, b) => a - b).join(" ");
    let engine = this.#engines.get(key);
    if (!engine) {
      engine = MaskEngine.create(this.tokens, this.vocabSize, new Set(markers));
      this.#engines.set(key, engine);
    }
    return engine;
  }
}
