import type { PositionLogprobs } from "../base/outputs.ts";
import type { ScoredToken } from "./chunks.ts";

/** Stands for −∞, which JSON lacks. */
const FLOOR = -9999;

export interface ChatToken {
  readonly token: string;
  readonly logprob: number;
  /** The token's text in UTF-8. */
  readonly bytes: readonly number[];
}

export interface ChatLogprobs {
  readonly content: readonly (ChatToken & { readonly top_logprobs: readonly ChatToken[] })[];
}

export interface CompletionLogprobs {
  readonly tokens: readonly string[];
  readonly token_logprobs: readonly (number | null)[];
  readonly top_logprobs: readonly (Readonly<Record<string, number>> | null)[];
  /** Offset of each token's text, in characters of all tokens before it. */
  readonly text_offset: readonly number[];
}

/** The spelling of tokens in a reply: their text, or `token_id:<id>`. */
export type TokenNames = (id: number, text: string) => string;

export const byText: TokenNames = (_, text) => text;
export const byId: TokenNames = (id) => `token_id:${id}`;

/** @param top how many of the likeliest tokens to list. */
export function chatLogprobs(scores: readonly ScoredToken[], top: number, name: TokenNames): ChatLogprobs {
  const entry = (id: number, text: string, logprob: number): ChatToken => {
    const token = name(id, text);
    return { token, logprob: Math.max(logprob, FLOOR), bytes: [...Buffer.from(token)] };
  };
  const content = scores.map(({ id, text, position }) => {
    const likeliest = [...(position ?? [])]
      .filter(([, { rank }]) => rank <= top)
      .sort(([, a], [, b]) => a.rank - b.rank);
    return {
      ...entry(id, text, position?.get(id)?.logprob ?? FLOOR),
      top_logprobs: likeliest.map(([id, { decodedToken, logprob }]) => entry(id, decodedToken, logprob)),
    };
  });
  return { content };
}

/** @param start the offset of the first token. */
export function completionLogprobs(
  scores: readonly ScoredToken[],
  start: number,
  name: TokenNames,
): CompletionLogprobs {
  let offset = start;
  return {
    tokens: scores.map(({ id, text }) => name(id, text)),
    token_logprobs: scores.map(({ id, position }) => position && floored(position.get(id)?.logprob)),
    top_logprobs: scores.map(({ position }) => position && byToken(position, name)),
    text_offset: scores.map(({ text }) => {
      const at = offset;
      offset += text.length;
      return at;
    }),
  };
}

/** vLLM's `prompt_logprobs`: token id → log-probability, rank and text; null for the first token. */
export function promptLogprobs(positions: readonly (PositionLogprobs | null)[], name: TokenNames) {
  return positions.map(
    (position) =>
      position &&
      Object.fromEntries(
        [...position].map(([id, { logprob, rank, decodedToken }]) => [
          id,
          { logprob: floored(logprob), rank, decoded_token: name(id, decodedToken) },
        ]),
      ),
  );
}

/** Of tokens with the same text, the first counts: the drawn one, then the likelier. */
function byToken(position: PositionLogprobs, name: TokenNames): Readonly<Record<string, number>> {
  const entries = [...position].map(
    ([id, { decodedToken, logprob }]) => [name(id, decodedToken), floored(logprob)] as const,
  );
  return Object.fromEntries(entries.reverse());
}

function floored(logprob: number | undefined): number {
  return Math.max(logprob ?? FLOOR, FLOOR);
}
