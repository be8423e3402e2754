import type { SubmittedRequest } from "../../base/outputs.ts";
import type { Chunk } from "./chunks.ts";

/** OpenAI's `usage`. */
export interface Usage {
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  readonly total_tokens: number;
  readonly prompt_tokens_details?: { readonly cached_tokens: number };
  readonly completion_tokens_details?: { readonly reasoning_tokens: number };
}

/** Counts the tokens of a reply. */
export class UsageCounter {
  completionTokens = 0;
  readonly #byChoice = new Map<number, number>();

  constructor(
    private readonly requests: readonly SubmittedRequest[],
    private readonly withDetails: boolean,
  ) {}

  add({ choice, tokenIds }: Pick<Chunk<unknown>, "choice" | "tokenIds">): void {
    this.completionTokens += tokenIds.length;
    this.#byChoice.set(choice, (this.#byChoice.get(choice) ?? 0) + tokenIds.length);
  }

  /** Tokens of the longest completion of each prompt. */
  longest(): readonly number[] {
    const { n } = this.requests[0]!.sampling;
    return this.requests.map((_, i) =>
      Math.max(...Array.from({ length: n }, (_, j) => this.#byChoice.get(i * n + j) ?? 0)),
    );
  }

  get promptTokens(): number {
    return sum(this.requests, (request) => request.numPromptTokens);
  }

  /** The usage so far. @param reasoning tokens of thoughts; undefined: there are none to be told apart. */
  usage(reasoning: number | undefined): Usage {
    const { promptTokens, completionTokens } = this;
    const cached = sum(this.requests, (request) => request.numCachedTokens);
    return {
      prompt_tokens: promptTokens,
      completion_tokens: completionTokens,
      total_tokens: promptTokens + completionTokens,
      ...(this.withDetails && { prompt_tokens_details: { cached_tokens: cached } }),
      ...(reasoning !== undefined && { completion_tokens_details: { reasoning_tokens: reasoning } }),
    };
  }
}

function sum<T>(list: readonly T[], value: (entry: T) => number): number {
  return list.reduce((total, entry) => total + value(entry), 0);
}
