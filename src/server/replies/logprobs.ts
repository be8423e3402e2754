import type { PositionLogprobs } from "../../base/outputs.ts";
import { fill, JsonList, joined } from "./json-parts.ts";
import type { TokenSpelling } from "./token-spelling.ts";

/** Stands for −∞, which JSON lacks. */
const FLOOR = -9999;

/** A token and the log-probabilities at its position; null for the first of a prompt, which nothing predicts. */
export interface ScoredToken {
  readonly id: number;
  readonly position: PositionLogprobs | null;
}

/** `logprobs` of `/v1/completions` as JSON, written token by token. */
export class CompletionLogprobs {
  readonly #tokens = new JsonList();
  readonly #logprobs = new JsonList();
  readonly #top = new JsonList();
  readonly #offsets = new JsonList();

  constructor(private readonly spelling: TokenSpelling) {}

  /** @param offset of the token's text in the reply's, in code points. */
  add({ id, position }: ScoredToken, offset: number): void {
    this.#tokens.add(this.spelling.of(id).name);
    this.#logprobs.add(position ? floored(position.get(id)?.logprob) : "null");
    this.#top.add(position ? this.#byToken(position) : "null");
    this.#offsets.add(String(offset));
  }

  /** The JSON of the tokens of one after the other. */
  static *text(lists: readonly CompletionLogprobs[]): Generator<string, void, undefined> {
    yield '{"tokens":';
    yield* joined(lists.map((list) => list.#tokens));
    yield ',"token_logprobs":';
    yield* joined(lists.map((list) => list.#logprobs));
    yield ',"top_logprobs":';
    yield* joined(lists.map((list) => list.#top));
    yield ',"text_offset":';
    yield* joined(lists.map((list) => list.#offsets));
    yield "}";
  }

  /** Best first. Of tokens with the same name the likeliest counts. */
  #byToken(position: PositionLogprobs): string {
    const entries = new Map<string, string>();
    for (const [id, { logprob }] of byRank(position)) {
      const { name } = this.spelling.of(id);
      if (!entries.has(name)) entries.set(name, floored(logprob));
    }
    return `{${Array.from(entries, ([name, logprob]) => `${name}:${logprob}`).join()}}`;
  }
}

/** `logprobs` of `/v1/chat/completions` as JSON, written token by token. */
export class ChatLogprobs {
  readonly #content = new JsonList();

  /** @param top how many of the likeliest tokens to list. */
  constructor(
    private readonly spelling: TokenSpelling,
    private readonly top: number,
  ) {}

  add({ id, position }: ScoredToken): void {
    const likeliest = byRank(position ?? new Map())
      .filter(([, { rank }]) => rank <= this.top)
      .map(([id, { logprob }]) => `{${this.#token(id, logprob)}}`);
    this.#content.add(
      `{${this.#token(id, position?.get(id)?.logprob)},"top_logprobs":[${likeliest.join()}]}`,
    );
  }

  *text(): Generator<string, void, undefined> {
    yield '{"content":';
    yield* joined([this.#content]);
    yield "}";
  }

  #token(id: number, logprob: number | undefined): string {
    const { name, bytes } = this.spelling.of(id);
    return `"token":${name},"logprob":${floored(logprob)},"bytes":${bytes}`;
  }
}

/** vLLM's `prompt_logprobs`: token id → log-probability, rank and text, best first; null for the first token. */
export async function promptLogprobs(
  positions: readonly (PositionLogprobs | null)[],
  spelling: TokenSpelling,
): Promise<JsonList> {
  const list = new JsonList();
  await fill(positions, (position) => {
    const entries = byRank(position ?? new Map()).map(
      ([id, { logprob, rank }]) =>
        `"${id}":{"logprob":${floored(logprob)},"rank":${rank},"decoded_token":${spelling.of(id).name}}`,
    );
    list.add(position ? `{${entries.join()}}` : "null");
  });
  return list;
}

function byRank(position: PositionLogprobs) {
  return [...position].sort(([, a], [, b]) => a.rank - b.rank);
}

function floored(logprob: number | undefined): string {
  return String(Math.max(logprob ?? FLOOR, FLOOR));
}
