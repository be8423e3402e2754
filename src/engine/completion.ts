import { messageOf, RequestFailedError } from "../base/errors.ts";
import type {
  CompletionDelta,
  CompletionOutput,
  FinishReason,
  Logprob,
  PositionLogprobs,
} from "../base/outputs.ts";
import type { ResolvedSamplingParams } from "../base/sampling-params.ts";
import type { LogprobRows } from "../runner/types.ts";
import { StopStringMatcher } from "./stop-strings.ts";

/** Turns tokens into text as they come. */
export interface TextStream {
  /** The text that `tokenId` completes, possibly none. */
  push(tokenId: number): string;
  /** The text still held back. */
  flush(): string;
}

/** What a completion needs to know of its request. */
export interface CompletionInit {
  readonly requestId: string;
  readonly index: number;
  readonly sampling: ResolvedSamplingParams;
  readonly maxTokens: number;
  /** End-of-sequence ids; empty under `ignoreEos`. */
  readonly eosTokenIds: ReadonlySet<number>;
  /** Without it there is no text. */
  readonly textStream: TextStream | undefined;
}

/**
 * One completion as it grows: decides when it ends and yields what is new as deltas. Never throws: an error in the text
 * stream ends this completion alone. Stop strings are looked for in the text after the first `minTokens` tokens.
 */
export class Completion {
  readonly index: number;
  finishReason: FinishReason | null = null;
  readonly #init: CompletionInit;
  readonly #matcher: StopStringMatcher | undefined;
  readonly #tokenIds: number[] = [];
  readonly #logprobs: PositionLogprobs[] | undefined;
  #cumulativeLogprob = 0;
  #text = "";
  #stopReason: string | number | null = null;
  /** What went wrong, with finishReason "error". */
  error: Error | undefined;
  #numSent = 0;
  #unsentText = "";

  constructor(init: CompletionInit) {
    const { stop, includeStopStrInOutput, logprobs } = init.sampling;
    this.index = init.index;
    this.#init = init;
    this.#matcher = stop.length > 0 ? new StopStringMatcher(stop, includeStopStrInOutput) : undefined;
    this.#logprobs = logprobs === undefined ? undefined : [];
  }

  /** Adds a token; `finishReason` tells whether it was the last. */
  append(tokenId: number, logprobs?: PositionLogprobs): void {
    const { sampling, eosTokenIds, maxTokens, textStream } = this.#init;
    this.#tokenIds.push(tokenId);
    if (this.#logprobs && logprobs) {
      this.#logprobs.push(logprobs);
      this.#cumulativeLogprob += logprobs.get(tokenId)!.logprob;
    }
    const count = this.#tokenIds.length;
    if (count > sampling.minTokens) {
      if (eosTokenIds.has(tokenId)) this.finish("stop");
      else if (sampling.stopTokenIds.includes(tokenId)) this.finish("stop", tokenId);
      if (this.finishReason !== null) return;
    }
    try {
      if (textStream) this.#emit(textStream.push(tokenId));
    } catch (error) {
      this.#fail(error);
    }
    if (this.finishReason === null && count >= maxTokens) this.finish("length");
  }

  /** Ends the completion, with the text held back so far. A stop string in that text takes precedence. */
  finish(reason: FinishReason, stopReason: string | number | null = null, error?: Error): void {
    try {
      if (this.#init.textStream) this.#emit(this.#init.textStream.flush());
    } catch (cause) {
      if (reason !== "error") this.#fail(cause);
    }
    if (this.finishReason !== null) return;
    if (this.#matcher) this.#addText(this.#matcher.flush());
    this.finishReason = reason;
    this.#stopReason = stopReason;
    this.error = error;
  }

  /** What is new since the last delta; undefined when that shows nothing to the reader yet. */
  takeDelta(): CompletionDelta | undefined {
    const { requestId, index, sampling, textStream } = this.#init;
    const done = this.finishReason !== null;
    if (!done && (sampling.outputKind === "finalOnly" || (textStream && this.#unsentText === "")))
      return undefined;
    const sent = this.#numSent;
    const delta: { -readonly [K in keyof CompletionDelta]: CompletionDelta[K] } = {
      requestId,
      index,
      text: this.#unsentText,
      tokenIds: this.#tokenIds.slice(sent),
      finishReason: this.finishReason,
      stopReason: this.#stopReason,
    };
    if (this.#logprobs) delta.logprobs = this.#logprobs.slice(sent);
    if (this.error) delta.error = this.error;
    this.#numSent = this.#tokenIds.length;
    this.#unsentText = "";
    return delta;
  }

  /** Everything so far. */
  output(): CompletionOutput {
    const logprobs = this.#logprobs && {
      logprobs: this.#logprobs.slice(),
      cumulativeLogprob: this.#cumulativeLogprob,
    };
    return {
      index: this.index,
      text: this.#text,
      tokenIds: this.#tokenIds.slice(),
      ...logprobs,
      finishReason: this.finishReason,
      stopReason: this.#stopReason,
      ...(this.error && { error: this.error }),
    };
  }

  #emit(text: string): void {
    if (!this.#matcher || this.#tokenIds.length <= this.#init.sampling.minTokens) {
      this.#addText(text);
      return;
    }
    const found = this.#matcher.push(text);
    this.#addText(found.text);
    if (found.matched === undefined) return;
    this.finishReason = "stop";
    this.#stopReason = found.matched;
  }

  #addText(text: string): void {
    this.#text += text;
    this.#unsentText += text;
  }

  #fail(cause: unknown): void {
    if (this.#matcher) this.#addText(this.#matcher.flush());
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
