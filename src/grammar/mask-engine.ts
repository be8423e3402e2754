import {
  type CompiledGrammar,
  Grammar,
  GrammarCompiler,
  GrammarMatcher,
  TokenizerInfo,
} from "@mlc-ai/web-xgrammar";
import { ALPHABET } from "../tokenizer/byte-alphabet.ts";
import { type PackedTokens, TokenTable } from "../tokenizer/token-table.ts";
import { FIRST_UNUSED, markerBytes } from "./marker-bytes.ts";
import { RecentTexts } from "./recent-texts.ts";
import { MAX_COMPILED } from "./stage-protocol.ts";

/**
 * xgrammar for one vocabulary: nothing else talks to it. What its C++ finds wrong aborts the module, which shows as a
 * `WebAssembly.RuntimeError`, after which this must not be used any more.
 */
export class MaskEngine {
  /** Matchers share what they need of those that are not kept. */
  readonly #compiled = new RecentTexts<CompiledGrammar>(MAX_COMPILED, (unused) => unused.dispose());

  private constructor(
    private readonly compiler: GrammarCompiler,
    /** A token without text, for matchers that no token may end: xgrammar has none without. */
    readonly unusedToken: number,
  ) {}

  /**
   * Special tokens get no text: no string can contain what would be left out of it or end it.
   * @param vocabSize width of the logits; ids without a token are never allowed
   * @param markers tokens that stand for themselves
   */
  static async create(
    packed: PackedTokens,
    vocabSize: number,
    markers: ReadonlySet<number> = new Set(),
  ): Promise<MaskEngine> {
    const table = new TokenTable(packed);
    const spelled = (bytes: Iterable<number>) => Array.from(bytes, (byte) => ALPHABET[byte]!).join("");
    const tokens = Array.from({ length: vocabSize }, (_, id) => {
      if (markers.has(id)) return spelled(markerBytes(id));
      const bytes = table.bytes(id);
      return table.isSpecial(id) || bytes.some((byte) => byte >= FIRST_UNUSED) ? "" : spelled(bytes);
    });
    const info = await TokenizerInfo.createTokenizerInfo(tokens, "byte_level", false, vocabSize, []);
    const unused = Math.max(0, tokens.indexOf(""));
    return new MaskEngine(await GrammarCompiler.createGrammarCompiler(info, false), unused);
  }

  /** A matcher at the beginning of a text. Its owner disposes of it. */
  async matcher(grammar: string, stopTokenIds: readonly number[]): Promise<GrammarMatcher> {
    const stops = stopTokenIds.length > 0 ? [...stopTokenIds] : [this.unusedToken];
    return GrammarMatcher.createGrammarMatcher(await this.#compile(grammar), stops);
  }

  async #compile(grammar: string): Promise<CompiledGrammar> {
    const known = this.#compiled.get(grammar);
    if (known) return known;
    const parsed = await Grammar.fromEBNF(grammar);
    try {
      const compiled = await this.compiler.compileGrammar(parsed);
      this.#compiled.add(grammar, compiled);
      return compiled;
    } finally {
      parsed.dispose();
    }
  }
}

export type { GrammarMatcher };
