import type { CompletionDelta, CompletionOutput, FinishReason, PositionLogprobs } from "../base/outputs.ts";

/** Puts a completion together from its deltas. */
export class CompletionBuilder {
  readonly #tokenIds: number[] = [];
  readonly #logprobs: PositionLogprobs[] = [];
  #text = "";
  #cumulativeLogprob = 0;
  #finishReason: FinishReason | null = null;
  #stopReason: string | number | null = null;
  #error: Error | undefined;

  constructor(
    private readonly index: number,
    private readonly hasLogprobs: boolean,
  ) {}

  add({ text, tokenIds, logprobs = [], finishReason, stopReason, error }: CompletionDelta): void {
    this.#text += text;
    for (const [i, token] of tokenIds.entries()) {
      this.#tokenIds.push(token);
      const position = logprobs[i];
      if (!position) continue;
      this.#logprobs.push(position);
      this.#cumulativeLogprob += position.get(token)!.logprob;
    }
    this.#finishReason = finishReason;
    this.#stopReason = stopReason;
    this.#error = error;
  }

  /** All text and tokens up to now. */
  soFar(): Pick<CompletionOutput, "text" | "tokenIds" | "logprobs"> {
    const logprobs = this.hasLogprobs && { logprobs: this.#logprobs.slice() };
    return { text: this.#text, tokenIds: this.#tokenIds.slice(), ...logprobs };
  }

  output(): CompletionOutput {
    return {
      ...{ index: this.index, ...this.soFar() },
      ...(this.hasLogprobs && { cumulativeLogprob: this.#cumulativeLogprob }),
      ...{ finishReason: this.#finishReason, stopReason: this.#stopReason },
      ...(this.#error && { error: this.#error }),
    };
  }
}
