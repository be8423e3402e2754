import type { Tokenizer } from "./tokenizer.ts";

/** A vocabulary as plain data, which crosses threads at no cost. */
export interface PackedTokens {
  /** The bytes of all tokens, one after the other. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** [vocabSize + 1]: token i has the bytes from starts[i] up to starts[i + 1]. */
  readonly starts: Int32Array<ArrayBuffer>;
  /** [vocabSize]: one of `KIND`. */
  readonly kinds: Uint8Array<ArrayBuffer>;
}

/** Kinds of tokens: those of the model's vocabulary, those that were added to it, and of these the special ones. */
const KIND = { ordinary: 0, added: 1, special: 2 } as const;

export function packTokens(tokenizer: Tokenizer): PackedTokens {
  const { vocabSize } = tokenizer;
  const tokens = Array.from({ length: vocabSize }, (_, id) => tokenizer.tokenBytes(id));
  const starts = new Int32Array(vocabSize + 1);
  for (const [id, { length }] of tokens.entries()) starts[id + 1] = starts[id]! + length;
  const bytes = new Uint8Array(starts[vocabSize]!);
  for (const [id, token] of tokens.entries()) bytes.set(token, starts[id]);
  const kindOf = (id: number) => {
    if (tokenizer.isSpecial(id)) return KIND.special;
    return tokenizer.isAdded(id) ? KIND.added : KIND.ordinary;
  };
  return { bytes, starts, kinds: Uint8Array.from(tokens, (_, id) => kindOf(id)) };
}

/** The bytes that each token stands for, where the tokenizer itself is in another thread. */
export class TokenTable {
  readonly #tokens: PackedTokens | undefined;

  /** @param tokens undefined without a tokenizer: no token stands for anything. */
  constructor(tokens: PackedTokens | undefined) {
    this.#tokens = tokens;
  }

  /** Possibly a part of a character; none for an id without a token. Do not modify. */
  bytes(id: number): Uint8Array {
    const { bytes, starts } = this.#tokens ?? NONE;
    return bytes.subarray(starts[id] ?? 0, starts[id + 1] ?? 0);
  }

  /** The added token that stands for a text. Looks at all tokens. */
  findAdded(text: string): number | undefined {
    const kinds = this.#tokens?.kinds ?? NONE.kinds;
    const wanted = Buffer.from(text);
    const id = kinds.findIndex((kind, id) => kind !== KIND.ordinary && wanted.equals(this.bytes(id)));
    return id < 0 ? undefined : id;
  }

  /** The token, added or not, that stands for a text. Looks at all tokens. */
  find(text: string): number | undefined {
    const wanted = Buffer.from(text);
    const { kinds } = this.#tokens ?? NONE;
    const id = kinds.findIndex((_, id) => wanted.equals(this.bytes(id)));
    return id < 0 ? undefined : id;
  }

  /** True for a token that is no text. */
  isSpecial(id: number): boolean {
    return this.#tokens?.kinds[id] === KIND.special;
  }
}

const NONE: PackedTokens = {
  bytes: new Uint8Array(0),
  starts: new Int32Array(1),
  kinds: new Uint8Array(0),
};
