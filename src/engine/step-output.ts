import type { CompletionDelta, FinishedRequest, PositionLogprobs, RequestMetrics } from "../base/outputs.ts";

/** A delta that belongs to its receiver, who may add to it. */
export type OwnedDelta = { -readonly [K in keyof CompletionDelta]: CompletionDelta[K] } & {
  tokenIds: number[];
  logprobs?: PositionLogprobs[];
};

/** The work of one engine step. */
export interface StepOutput {
  /** New text and tokens; the last delta of each completion has a `finishReason`. */
  readonly deltas: readonly OwnedDelta[];
  /** Requests of which something was computed for the first time, and those that have their first delta here. */
  readonly prompts: readonly PromptProgress[];
  /** Requests that have their last delta here. The engine has forgotten them. */
  readonly finished: readonly FinishedRequest[];
  /** Tokens in the batch that was launched; 0 when none was. */
  readonly numBatchedTokens: number;
}

/** A request's prompt, as far as it has been computed. */
export interface PromptProgress {
  readonly id: string;
  /** Prompt tokens whose keys and values came from the prefix cache. */
  readonly numCachedTokens: number;
  readonly metrics: RequestMetrics;
  /** With the first delta, if they were asked for; null for the first token, which nothing predicts. */
  readonly promptLogprobs?: readonly (PositionLogprobs | null)[];
  /** With the first delta, if they were asked for: float32 [promptTokens, vocabSize]. */
  readonly logits?: Float32Array;
  /** With the first delta, if it was asked for: the pooled hidden states, float32 [hiddenSize]. */
  readonly embedding?: Float32Array;
}
