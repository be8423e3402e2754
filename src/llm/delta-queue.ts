import type { CompletionDelta } from "../base/outputs.ts";
import type { OwnedDelta } from "../engine/step-output.ts";

/** Deltas that their reader has not taken yet: at most one a choice, as those that follow are appended to it. */
export class DeltaQueue {
  readonly #deltas: (OwnedDelta | undefined)[] = [];
  /** The choices that have a delta, those that have waited longest first. */
  readonly #choices: number[] = [];

  push(choice: number, delta: OwnedDelta): void {
    const waiting = this.#deltas[choice];
    if (waiting) appendDelta(waiting, delta);
    else {
      this.#deltas[choice] = delta;
      this.#choices.push(choice);
    }
  }

  take(): OwnedDelta | undefined {
    const choice = this.#choices.shift();
    if (choice === undefined) return undefined;
    const delta = this.#deltas[choice];
    this.#deltas[choice] = undefined;
    return delta;
  }

  clear(): void {
    this.#deltas.length = 0;
    this.#choices.length = 0;
  }
}

/** Puts the delta that follows at the end of `into`. */
export function appendDelta(into: OwnedDelta, delta: CompletionDelta): void {
  const { text, tokenIds, logprobs, finishReason, stopReason, error } = delta;
  into.text += text;
  for (const token of tokenIds) into.tokenIds.push(token);
  if (logprobs) {
    into.logprobs ??= [];
    for (const position of logprobs) into.logprobs.push(position);
  }
  into.finishReason = finishReason;
  into.stopReason = stopReason;
  if (error) into.error = error;
}
