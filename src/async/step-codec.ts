import type { CompletionDelta, FinishReason, PositionLogprobs } from "../base/outputs.ts";
import { decodeError, type EncodedError, encodeError } from "./error-codec.ts";
import type { LogprobPacker, LogprobUnpacker, PackedLogprobs } from "./logprob-codec.ts";

/** A delta that its owner may add to. */
export type MutableDelta = { -readonly [K in keyof CompletionDelta]: CompletionDelta[K] } & {
  tokenIds: number[];
  logprobs?: PositionLogprobs[];
};

/** The deltas of a step in few values: cloning 256 objects takes ten times as long. */
export interface PackedDeltas {
  /**
   * Of each delta: request, completion, UTF-16 units of text, positions with log-probabilities or −1 for none, number
   * of tokens; and then its tokens.
   */
  readonly words: Int32Array<ArrayBuffer>;
  /** The text of all of them. */
  readonly text: string;
  /** The log-probabilities of all of them. */
  readonly logprobs: PackedLogprobs | undefined;
  /** For those that end a completion, by their place. */
  readonly ends: ReadonlyMap<number, DeltaEnd>;
}

interface DeltaEnd {
  readonly finishReason: FinishReason;
  readonly stopReason: string | number | null;
  readonly error: EncodedError | undefined;
}

const HEADER = 5;

/** @param requestOf the number of the request with that id, below 2^31. */
export function packDeltas(
  deltas: readonly CompletionDelta[],
  requestOf: (requestId: string) => number,
  packer: LogprobPacker,
): PackedDeltas {
  let size = 0;
  for (const { tokenIds } of deltas) size += HEADER + tokenIds.length;
  const words = new Int32Array(size);
  const positions: PositionLogprobs[] = [];
  const ends = new Map<number, DeltaEnd>();
  let text = "";
  let at = 0;
  for (let i = 0; i < deltas.length; i++) {
    const delta = deltas[i]!;
    const { tokenIds, logprobs, finishReason, stopReason, error } = delta;
    words[at++] = requestOf(delta.requestId);
    words[at++] = delta.index;
    words[at++] = delta.text.length;
    words[at++] = logprobs?.length ?? -1;
    words[at++] = tokenIds.length;
    for (const token of tokenIds) words[at++] = token;
    text += delta.text;
    for (const position of logprobs ?? []) positions.push(position);
    if (finishReason !== null) ends.set(i, { finishReason, stopReason, error: error && encodeError(error) });
  }
  return { words, text, logprobs: positions.length > 0 ? packer.pack(positions) : undefined, ends };
}

/** Calls `receive` for every delta, in order. */
export function unpackDeltas(
  { words, text, logprobs, ends }: PackedDeltas,
  idOf: (request: number) => string,
  unpacker: LogprobUnpacker,
  receive: (request: number, delta: MutableDelta) => void,
): void {
  // No position of an output is null.
  const positions = logprobs ? (unpacker.unpack(logprobs) as PositionLogprobs[]) : [];
  let textAt = 0;
  let positionAt = 0;
  for (let at = 0, i = 0; at < words.length; i++) {
    const request = words[at++]!;
    const index = words[at++]!;
    const textEnd = textAt + words[at++]!;
    const numPositions = words[at++]!;
    const numTokens = words[at++]!;
    const tokenIds: number[] = [];
    for (const end = at + numTokens; at < end; at++) tokenIds.push(words[at]!);
    const end = ends.get(i);
    const delta: MutableDelta = {
      requestId: idOf(request),
      index,
      text: text.slice(textAt, textEnd),
      tokenIds,
      finishReason: end?.finishReason ?? null,
      stopReason: end?.stopReason ?? null,
    };
    if (numPositions >= 0) delta.logprobs = positions.slice(positionAt, positionAt + numPositions);
    if (end?.error) delta.error = decodeError(end.error);
    textAt = textEnd;
    positionAt += Math.max(0, numPositions);
    receive(request, delta);
  }
}
