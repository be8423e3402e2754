import { messageOf, RequestFailedError } from "../base/errors.ts";
import type { FinishReason, Logprob, PositionLogprobs } from "../base/outputs.ts";
import type { ResolvedSamplingParams } from "../base/sampling-params.ts";
import type { LogprobRows } from "../runner/types.ts";
import type { OwnedDelta } from "./step-output.ts";
import { StopStringMatcher } from "./stop-strings.ts";

/** Turns tokens into text as they come. */
export interface TextStream {
  /** The text that `tokenId` completes, possibly none. */
  push(tokenId: number): string;
  /** The text still held back. */
  flush(): string;
}

/** The part of its request that decides how a completion goes on. */
export interface CompletionInit {
  readonly requestId: string;
  readonly index: number;
  readonly sampling: ResolvedSamplingParams;
  readonly maxTokens: number;
  /** End-of-sequence ids; empty under `ignoreEos`. */
  readonly eosTokenIds: ReadonlySet<number>;
  /** Called with the first token. Without it there is no text. */
  readonly openTextStream: (() => TextStream) | undefined;
}

/**
 * One completion as it grows: decides when it ends and hands out what is new as deltas. Never throws: an error in the
 * text stream ends this completion alone. Stop strings are looked for in the text after the first `minTokens` tokens.
 */
export class Completion {
  readonly index: number;
  numTokens = 0;
  finishReason: FinishReason | null = null;
  /** The failure, with finishReason "error". */
  error: Error | undefined;
  readonly #init: CompletionInit;
  readonly #matcher: StopStringMatcher | undefined;
  #textStream: TextStream | undefined;
  #stopReason: string | number | null = null;
  #unsentTokens: number[] = [];
  #unsentText = "";
  #unsentLogprobs: PositionLogprobs[] | undefined;

  constructor(init: CompletionInit) {
    const { stop, includeStopStrInOutput, logprobs } = init.sampling;
    this.index = init.index;
    this.#init = init;
    this.#matcher = stop.length > 0 ? new StopStringMatcher(stop, includeStopStrInOutput) : undefined;
    this.#unsentLogprobs = logprobs === undefined ? undefined : [];
  }

  /** Adds a token; `finishReason` tells whether it was the last. */
  append(tokenId: number, logprobs?: PositionLogprobs): void {
    const { sampling, eosTokenIds, maxTokens, openTextStream } = this.#init;
    this.numTokens++;
    this.#unsentTokens.push(tokenId);
    if (logprobs) this.#unsentLogprobs?.push(logprobs);
    if (this.numTokens > sampling.minTokens) {
      if (eosTokenIds.has(tokenId)) this.finish("stop");
      else if (sampling.stopTokenIds.includes(tokenId)) this.finish("stop", tokenId);
      if (this.finishReason !== null) return;
    }
    try {
      this.#textStream ??= openTextStream?.();
      if (this.#textStream) this.#emit(this.#textStream.push(tokenId));
    } catch (error) {
      this.#fail(error);
    }
    if (this.finishReason === null && this.numTokens >= maxTokens) this.finish("length");
  }

  /** Ends the completion, with the text held back so far. A stop string in that text takes precedence. */
  finish(reason: FinishReason, stopReason: string | number | null = null, error?: Error): void {
    try {
      if (this.#textStream) this.#emit(this.#textStream.flush());
    } catch (cause) {
      if (reason !== "error") this.#fail(cause);
    }
    if (this.finishReason !== null) return;
    if (this.#matcher) this.#unsentText += this.#matcher.flush();
    this.finishReason = reason;
    this.#stopReason = stopReason;
    this.error = error;
  }

  /** The tokens and text since the last delta; undefined when they show nothing to the reader yet. */
  takeDelta(): OwnedDelta | undefined {
    const { requestId, index, sampling, openTextStream } = this.#init;
    const done = this.finishReason !== null;
    if (!done && (sampling.outputKind === "finalOnly" || (openTextStream && this.#unsentText === "")))
      return undefined;
    const delta: OwnedDelta = {
      requestId,
      index,
      text: this.#unsentText,
      tokenIds: this.#unsentTokens,
      finishReason: this.finishReason,
      stopReason: this.#stopReason,
    };
    if (this.#unsentLogprobs) {
      delta.logprobs = this.#unsentLogprobs;
      this.#unsentLogprobs = [];
    }
    if (this.error) delta.error = this.error;
    this.#unsentTokens = [];
    this.#unsentText = "";
    return delta;
  }

  #emit(text: string): void {
    if (!this.#matcher || this.numTokens <= this.#init.sampling.minTokens) {
      this.#unsentText += text;
      return;
    }
    const found = this.#matcher.push(text);
    this.#unsentText += found.text;
    if (found.matched === undefined) return;
    this.finishReason = "stop";
    this.#stopReason = found.matched;
  }

  #fail(cause: unknown): void {
    if (this.#matcher) this.#unsentText += this.#matcher.flush();
    this.finishReason = "error";
    const message = `turning tokens into text failed: ${messageOf(cause)}`;
    this.error = new RequestFailedError(message, "detokenize_failed", { cause });
  }
}

/** The log-probabilities of row `row`: the token itself first, then the `count` most likely ones. */
export function positionLogprobs(
  rows: LogprobRows,
  row: number,
  count: number,
  decodeToken: (id: number) => string,
): PositionLogprobs {
  const entries = new Map<number, Logprob>();
  const chosen = rows.chosenIds[row]!;
  const rank = rows.chosenRanks[row]!;
  entries.set(chosen, { logprob: rows.chosenLogprobs[row]!, rank, decodedToken: decodeToken(chosen) });
  for (let i = 0; i < Math.min(count, rows.topCount); i++) {
    const id = rows.topIds[row * rows.topCount + i]!;
    if (id === chosen) continue;
    const logprob = rows.topLogprobs[row * rows.topCount + i]!;
    entries.set(id, { logprob, rank: i + 1, decodedToken: decodeToken(id) });
  }
  return entries;
}
