import type { TextStream } from "../../src/engine/completion.ts";
import type { RequestDraft, TokenIds } from "../../src/engine/request.ts";

/** A toy model whose every output depends on the whole history: the fake runner and the reference share only this. */
export const VOCAB = 19;
export const EOS = 0;

export function mix(a: number, b: number): number {
  let h = Math.imul(a ^ (b + 0x9e3779b9), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

/** The "keys and values" of a token, given those of the token before. */
export const cell = (previous: number, token: number, salt: number): number =>
  mix(previous, mix(token + 1, salt));

/** The next token after a history with digest `digest`, at position `position`. */
export function draw(
  digest: number,
  seed: bigint,
  position: number,
  banned: readonly number[],
  bannedUntil: number,
): number {
  let token = mix(digest, Number(seed & 0xffff_ffffn)) % VOCAB;
  while (position < bannedUntil && banned.includes(token)) token = (token + 1) % VOCAB;
  return token;
}

export const logprobOf = (digest: number, token: number): number => -(mix(digest, token) % 1024) / 64;

/** The salt is part of the seed, so that the runner can tell whose cache it reads. */
export const makeSeed = (request: number, salt: number): bigint =>
  (BigInt(salt) << 40n) | (BigInt(request + 1) << 12n);
export const saltOf = (seed: bigint): number => Number(seed >> 40n);

/** Some tokens have no text before the next one comes. Throws after `failAfter` tokens. */
export class ToyTextStream implements TextStream {
  #held = "";
  #left: number;

  constructor(failAfter = Number.POSITIVE_INFINITY) {
    this.#left = failAfter;
  }

  push(token: number): string {
    if (--this.#left < 0) throw new Error("no text for this token");
    if (token % 5 === 3) {
      this.#held += "?";
      return "";
    }
    const text = this.#held + String.fromCharCode(97 + (token % 4));
    this.#held = "";
    return text;
  }

  flush(): string {
    const held = this.#held;
    this.#held = "";
    return held;
  }
}

export interface Expected {
  tokens: number[];
  logprobs: number[];
  text: string;
  finishReason: string;
  stopReason: string | number | null;
}

/** What completion `index` must be, computed token by token without batches, blocks or caches. */
export function reference(request: RequestDraft, index: number, limit: number, failAfter?: number): Expected {
  const { sampling, promptTokenIds } = request;
  const seed = sampling.seed! + BigInt(index);
  const salt = saltOf(seed);
  const maxTokens = request.logits ? 0 : (sampling.maxTokens ?? limit - promptTokenIds.length);
  const banned = [...(sampling.ignoreEos ? [] : [EOS]), ...sampling.stopTokenIds];
  const bannedUntil = promptTokenIds.length + sampling.minTokens;
  const expected: Expected = { tokens: [], logprobs: [], text: "", finishReason: "length", stopReason: null };
  const stream = sampling.detokenize && !request.logits ? new ToyTextStream(failAfter) : undefined;

  let searched = "";
  const addText = (text: string): boolean => {
    for (const character of text) {
      expected.text += character;
      if (expected.tokens.length <= sampling.minTokens) continue;
      searched += character;
      const found = sampling.stop
        .filter((stop) => searched.endsWith(stop))
        .sort((a, b) => b.length - a.length)[0];
      if (found === undefined) continue;
      if (!sampling.includeStopStrInOutput) expected.text = expected.text.slice(0, -found.length);
      expected.finishReason = "stop";
      expected.stopReason = found;
      return true;
    }
    return false;
  };

  let digest = 0;
  let previous = salt;
  const history = [...promptTokenIds];
  for (const token of promptTokenIds) {
    previous = cell(previous, token, salt);
    digest = mix(digest, previous);
  }
  while (expected.tokens.length < maxTokens) {
    const token = draw(digest, seed, history.length, banned, bannedUntil);
    expected.tokens.push(token);
    expected.logprobs.push(logprobOf(digest, token));
    history.push(token);
    previous = cell(previous, token, salt);
    digest = mix(digest, previous);
    const mayEnd = expected.tokens.length > sampling.minTokens;
    if (mayEnd && ((token === EOS && !sampling.ignoreEos) || sampling.stopTokenIds.includes(token))) {
      expected.finishReason = "stop";
      expected.stopReason = token === EOS && !sampling.ignoreEos ? null : token;
      break;
    }
    try {
      if (stream && addText(stream.push(token))) return expected;
    } catch {
      expected.finishReason = "error";
      return expected;
    }
  }
  if (stream) addText(stream.flush());
  return expected;
}

/** The digests of the histories that end at each position of `tokens`. */
export function digests(tokens: TokenIds, salt: number): number[] {
  let digest = 0;
  let previous = salt;
  return Array.from(tokens, (token) => {
    previous = cell(previous, token, salt);
    digest = mix(digest, previous);
    return digest;
  });
}
