import type { FinishedRequest } from "../base/outputs.ts";
import type { RequestState } from "./request-state.ts";
import type { OwnedDelta, StepOutput } from "./step-output.ts";

/** The next step's output as it comes together. */
export class Outbox {
  #deltas: OwnedDelta[] = [];
  readonly #prompts = new Set<RequestState>();
  #finished: FinishedRequest[] = [];

  get isEmpty(): boolean {
    return this.#deltas.length === 0;
  }

  /** The request's prompt has got further: once when it is begun, once with the first delta. */
  prompt(state: RequestState): void {
    this.#prompts.add(state);
  }

  delta(delta: OwnedDelta): void {
    this.#deltas.push(delta);
  }

  finished(state: RequestState): void {
    this.#finished.push(state.summary());
  }

  take(numBatchedTokens: number): StepOutput {
    const prompts = Array.from(this.#prompts, (state) => state.promptProgress());
    const output = { deltas: this.#deltas, prompts, finished: this.#finished, numBatchedTokens };
    this.clear();
    return output;
  }

  clear(): void {
    this.#deltas = [];
    this.#prompts.clear();
    this.#finished = [];
  }
}
