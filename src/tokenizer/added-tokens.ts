import type { AddedToken } from "./tokenizer-files.ts";

type Normalize = (text: string) => string;

/** An added token, as it is spelled, or a stretch of text between added tokens. */
export interface Section {
  readonly text: string;
  readonly isAdded: boolean;
  /** True for the one at the start of the whole text. */
  readonly isFirst: boolean;
}

const WORD = "[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}]";
const WORD_AT_START = new RegExp(`^${WORD}`, "v");
const WORD_AT_END = new RegExp(`${WORD}$`, "v");
const SPACE = /^\p{White_Space}$/u;

/**
 * Finds added tokens in a text, as the Rust library does: those that are not normalised in the text as it is, the others in
 * what the normaliser makes of the stretches between. The longest that begins first wins; a token may take the white
 * space beside it, or be none within a word.
 */
export class AddedTokens {
  readonly #literal: TokenTrie;
  readonly #normalized: TokenTrie;
  readonly #normalize: Normalize;

  constructor(tokens: readonly AddedToken[], normalize: Normalize) {
    const isNormalized = (token: AddedToken) => token.normalized ?? !token.special;
    this.#normalize = normalize;
    this.#literal = new TokenTrie(
      tokens.filter((token) => !isNormalized(token)).map((token) => [token.content, token]),
    );
    this.#normalized = new TokenTrie(
      tokens.filter(isNormalized).map((token) => [normalize(token.content), token]),
    );
  }

  /** The tokens of `text` and the normalised stretches between them, in order; none of these is empty. */
  split(text: string): Section[] {
    return sections(text, this.#literal, true).flatMap((section) => {
      if (section.isAdded) return section;
      return sections(this.#normalize(section.text), this.#normalized, section.isFirst);
    });
  }
}

interface TrieNode {
  readonly children: Map<number, TrieNode>;
  token?: AddedToken;
}

/** Texts of added tokens by their UTF-16 units. */
class TokenTrie {
  readonly #root: TrieNode = { children: new Map() };

  constructor(entries: readonly (readonly [string, AddedToken])[]) {
    for (const [content, token] of entries) {
      let node = this.#root;
      for (let i = 0; i < content.length; i++) {
        const unit = content.charCodeAt(i);
        const child = node.children.get(unit) ?? { children: new Map() };
        node.children.set(unit, child);
        node = child;
      }
      if (node !== this.#root) node.token ??= token;
    }
  }

  get isEmpty(): boolean {
    return this.#root.children.size === 0;
  }

  /** The longest token that begins at `start`, and where it ends. */
  longest(text: string, start: number): { token: AddedToken; end: number } | undefined {
    let found: { token: AddedToken; end: number } | undefined;
    let node = this.#root.children.get(text.charCodeAt(start));
    for (let end = start + 1; node !== undefined; node = node.children.get(text.charCodeAt(end++))) {
      if (node.token !== undefined) found = { token: node.token, end };
    }
    return found;
  }
}

function sections(text: string, trie: TokenTrie, isFirst: boolean): Section[] {
  const result: Section[] = [];
  /** The start of what has not been told yet. */
  let open = 0;
  const tell = (end: number) => {
    if (end > open)
      result.push({ text: text.slice(open, end), isAdded: false, isFirst: isFirst && open === 0 });
  };
  for (let at = trie.isEmpty ? text.length : 0; at < text.length; ) {
    const found = trie.longest(text, at);
    if (found === undefined) {
      at++;
      continue;
    }
    const { token, end } = found;
    const inWord =
      WORD_AT_END.test(text.slice(Math.max(0, at - 2), at)) || WORD_AT_START.test(text.slice(end, end + 2));
    if (!(token.single_word && inWord)) {
      tell(token.lstrip ? Math.max(open, spaceBefore(text, at)) : at);
      result.push({ text: token.content, isAdded: true, isFirst: false });
      open = token.rstrip ? spaceAfter(text, end) : end;
    }
    at = end;
  }
  tell(text.length);
  return result;
}

function spaceBefore(text: string, end: number): number {
  let start = end;
  while (start > 0 && SPACE.test(text[start - 1]!)) start--;
  return start;
}

function spaceAfter(text: string, start: number): number {
  let end = start;
  while (end < text.length && SPACE.test(text[end]!)) end++;
  return end;
}
