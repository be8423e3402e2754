import type { ResolvedSamplingParams } from "./sampling-params.ts";

/** The reason that a completion ended; null while it has not. */
export type FinishReason = "stop" | "length" | "abort" | "error";

/** One entry of a step's log-probabilities. */
export interface Logprob {
  /** Natural logarithm of the probability before temperature, penalties and truncation. */
  readonly logprob: number;
  /** 1 = the most likely token. */
  readonly rank: number;
  /** The token as text; empty without a tokenizer. */
  readonly decodedToken: string;
}

/** Token id → log-probability at one position: the token itself first, then the most likely ones, best first. */
export type PositionLogprobs = ReadonlyMap<number, Logprob>;

/** One of the `n` completions of a prompt. */
export interface CompletionOutput {
  readonly index: number;
  readonly text: string;
  readonly tokenIds: readonly number[];
  /** Sum of the tokens' log-probabilities; present with `logprobs`. */
  readonly cumulativeLogprob?: number;
  readonly logprobs?: readonly PositionLogprobs[];
  readonly finishReason: FinishReason | null;
  /** The stop string or stop token id that ended it; null for an end-of-sequence token or another reason. */
  readonly stopReason: string | number | null;
  /** The failure, with finishReason "error". */
  readonly error?: Error;
}

/** Timestamps of a request, in seconds on the engine's clock. */
export interface RequestMetrics {
  readonly arrivalTime: number;
  readonly firstScheduledTime?: number;
  readonly firstTokenTime?: number;
  readonly finishedTime?: number;
}

/** The result of a prompt: vLLM's `RequestOutput`. */
export interface RequestOutput {
  readonly requestId: string;
  /** The prompt's text, if it was given as text. */
  readonly prompt?: string;
  readonly promptTokenIds: readonly number[];
  /** Null for the first token, which nothing predicts. */
  readonly promptLogprobs?: readonly (PositionLogprobs | null)[];
  readonly outputs: readonly CompletionOutput[];
  readonly finished: boolean;
  /** Prompt tokens whose keys and values came from the prefix cache. */
  readonly numCachedTokens: number;
  readonly metrics: RequestMetrics;
}

/** New text and tokens of one completion: what `stream` yields. Concatenated, the deltas are the completion. */
export interface CompletionDelta extends Omit<CompletionOutput, "cumulativeLogprob"> {
  readonly requestId: string;
}

/** A request under way, as the holder of its stream knows it. */
export interface SubmittedRequest {
  /** `requestId` of its deltas. Never the caller's. */
  readonly id: string;
  /** The prompt's text, conversations rendered; undefined for token ids. */
  readonly prompt: string | undefined;
  readonly promptTokenIds: readonly number[];
  readonly numPromptTokens: number;
  readonly sampling: ResolvedSamplingParams;
  /** Index of the replica that runs it; 0 where there is one engine. */
  readonly replica: number;
  /** Valid from the first delta on. */
  readonly numCachedTokens: number;
  /** Valid from the first delta on; undefined unless asked for. */
  readonly promptLogprobs: readonly (PositionLogprobs | null)[] | undefined;
  /** float32 [hiddenSize], valid with the last delta; undefined unless asked for. */
  readonly embedding?: Float32Array | undefined;
  /**
   * In seconds on the engine's clock. `firstScheduledTime` is known after the step that began the prompt, or with overlap
   * as soon as that is launched; the rest with the first and the last delta.
   */
  readonly metrics: RequestMetrics;
}

/**
 * The deltas of one or more requests that were submitted together. Iterate it once: those of a completion come in order,
 * and it ends after the last delta of all. A slow reader holds up nobody: what it has not taken is merged into one delta
 * a completion. Leaving the loop aborts the requests.
 */
export interface GenerationStream extends AsyncIterable<CompletionDelta> {
  /** One for each prompt, in their order. */
  readonly requests: readonly SubmittedRequest[];
  /** Ends the requests; their completions finish with "abort". Safe at any time. */
  abort(): void;
}

/** The sums of a request that has ended. */
export interface FinishedRequest {
  readonly id: string;
  /** Of each completion. */
  readonly finishReasons: readonly FinishReason[];
  readonly promptTokens: number;
  readonly cachedTokens: number;
  /** Of all completions. */
  readonly generationTokens: number;
  /** Of each completion. */
  readonly completionTokens: readonly number[];
  /** As asked for; undefined: what the context holds. */
  readonly maxTokens: number | undefined;
  readonly n: number;
  readonly metrics: RequestMetrics;
}
