import { Grammar, GrammarCompiler, GrammarMatcher, TokenizerInfo } from "@mlc-ai/web-xgrammar";
import { SplitMix64 } from "../../../src/base/random.ts";
import { ALPHABET } from "../../../src/tokenizer/byte-alphabet.ts";

const STOP = 256;

/** Random numbers for tests. */
export class Dice {
  readonly #source: SplitMix64;

  constructor(seed: number) {
    this.#source = new SplitMix64(BigInt(seed));
  }

  /** An integer in [0, count). */
  below(count: number): number {
    return Number(this.#source.next() % BigInt(count));
  }

  chance(share: number): boolean {
    return this.below(1000) < share * 1000;
  }

  of<T>(list: readonly T[]): T {
    return list[this.below(list.length)]!;
  }
}

/** Walks grammars byte by byte, as a model without any sense would. */
export class GrammarWalker {
  private constructor(private readonly compiler: GrammarCompiler) {}

  static async create(): Promise<GrammarWalker> {
    const info = await TokenizerInfo.createTokenizerInfo([...ALPHABET, "<stop>"], "byte_level", false, 257, [
      STOP,
    ]);
    return new GrammarWalker(await GrammarCompiler.createGrammarCompiler(info, false));
  }

  async accepts(ebnf: string, text: string): Promise<boolean> {
    const matcher = await this.#matcher(ebnf);
    try {
      return [...Buffer.from(text), STOP].every((byte) => matcher.acceptToken(byte));
    } finally {
      matcher.dispose();
    }
  }

  /** `count` texts of the grammar; those that do not come to an end in `length` bytes are left out. */
  async texts(ebnf: string, count: number, dice: Dice, length = 2000): Promise<string[]> {
    const matcher = await this.#matcher(ebnf);
    const texts: string[] = [];
    for (let i = 0; i < count; i++) {
      matcher.reset();
      const bytes: number[] = [];
      while (bytes.length < length) {
        const token = await draw(matcher, dice, bytes.length);
        if (token === undefined) throw new Error(`a dead end after ${Buffer.from(bytes)}`);
        if (!matcher.acceptToken(token)) throw new Error("an allowed token was refused");
        if (token === STOP) break;
        bytes.push(token);
      }
      if (matcher.isTerminated()) texts.push(Buffer.from(bytes).toString("utf8"));
    }
    matcher.dispose();
    return texts;
  }

  async #matcher(ebnf: string): Promise<GrammarMatcher> {
    const grammar = await Grammar.fromEBNF(ebnf);
    const compiled = await this.compiler.compileGrammar(grammar);
    const matcher = await GrammarMatcher.createGrammarMatcher(compiled, [STOP]);
    compiled.dispose();
    grammar.dispose();
    return matcher;
  }
}

const ENDINGS = Array.from('"]},', (char) => char.charCodeAt(0));

/** An allowed byte; what ends something is preferred, the more the longer the text. Undefined: none is allowed. */
async function draw(matcher: GrammarMatcher, dice: Dice, length: number): Promise<number | undefined> {
  const mask = await matcher.getNextTokenBitmask();
  const allowed: number[] = [];
  for (let token = 0; token <= STOP; token++)
    if ((mask[token >> 5]! >> (token & 31)) & 1) allowed.push(token);
  if (allowed.length === 0) return undefined;
  if (allowed.includes(STOP) && dice.chance(0.3)) return STOP;
  const endings = allowed.filter((token) => ENDINGS.includes(token) && (length < 200 || token !== 44));
  if (endings.length > 0 && dice.chance(length < 200 ? 0.3 : 0.9)) return dice.of(endings);
  const plain = allowed.filter((token) => token > 32 && token < 127);
  return dice.of(plain.length > 0 && dice.chance(0.8) ? plain : allowed);
}
