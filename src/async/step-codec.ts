import type { FinishedRequest, FinishReason, PositionLogprobs } from "../base/outputs.ts";
import type { OwnedDelta, PromptProgress, StepOutput } from "../engine/step-output.ts";
import { decodeError, type EncodedError, encodeError } from "../threads/error-codec.ts";
import type { LogprobPacker, LogprobUnpacker, PackedLogprobs } from "./logprob-codec.ts";

/** A step's output in few values: cloning 256 deltas as objects takes ten times as long. */
export interface PackedStep {
  /**
   * Of each delta: request, completion, UTF-16 units of text, positions with log-probabilities or −1 for none, number
   * of tokens; and then its tokens.
   */
  readonly words: Int32Array<ArrayBuffer>;
  /** The text of all deltas. */
  readonly text: string;
  /** The log-probabilities of all deltas. */
  readonly logprobs: PackedLogprobs | undefined;
  /** Of the deltas that end a completion, by their place. */
  readonly ends: ReadonlyMap<number, DeltaEnd>;
  readonly prompts: readonly PackedPrompt[];
  readonly finished: readonly FinishedRequest[];
  readonly numBatchedTokens: number;
}

interface DeltaEnd {
  readonly finishReason: FinishReason;
  readonly stopReason: string | number | null;
  readonly error: EncodedError | undefined;
}

interface PackedPrompt {
  readonly progress: PromptProgress;
  readonly promptLogprobs: PackedLogprobs | undefined;
}

/** Words of a delta before its tokens: the request's id in two, its index, characters, log-probabilities, tokens. */
const HEADER = 6;
const WORD = 2 ** 32;

/** Request ids must be decimal safe integers. Log-probabilities are packed in the order `prompts`, `deltas`. */
export function packStep(
  { deltas, prompts, finished, numBatchedTokens }: StepOutput,
  packer: LogprobPacker,
): PackedStep {
  const packedPrompts = prompts.map(({ promptLogprobs, ...progress }) => {
    return { progress, promptLogprobs: promptLogprobs && packer.pack(promptLogprobs) };
  });
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
    const id = Number(delta.requestId);
    words[at++] = id % WORD;
    words[at++] = Math.floor(id / WORD);
    words[at++] = delta.index;
    words[at++] = delta.text.length;
    words[at++] = logprobs?.length ?? -1;
    words[at++] = tokenIds.length;
    for (const token of tokenIds) words[at++] = token;
    text += delta.text;
    for (const position of logprobs ?? []) positions.push(position);
    if (finishReason !== null) ends.set(i, { finishReason, stopReason, error: error && encodeError(error) });
  }
  const logprobs = positions.length > 0 ? packer.pack(positions) : undefined;
  return { words, text, logprobs, ends, prompts: packedPrompts, finished, numBatchedTokens };
}

/** The buffers of a packed step that can be transferred. */
export function transfersOf({ words, logprobs, prompts }: PackedStep): ArrayBuffer[] {
  const packed = [logprobs, ...prompts.map(({ promptLogprobs }) => promptLogprobs)];
  return [words.buffer, ...packed.flatMap((list) => (list ? [list.words.buffer, list.values.buffer] : []))];
}

/** Steps must be unpacked in the order of packing. */
export function unpackStep(step: PackedStep, unpacker: LogprobUnpacker): StepOutput {
  const prompts = step.prompts.map(({ progress, promptLogprobs }) => {
    return promptLogprobs ? { ...progress, promptLogprobs: unpacker.unpackLazily(promptLogprobs) } : progress;
  });
  const { words, text, ends, finished, numBatchedTokens } = step;
  // No position of an output is null.
  const positions = step.logprobs ? (unpacker.unpack(step.logprobs) as PositionLogprobs[]) : [];
  const deltas: OwnedDelta[] = [];
  let textAt = 0;
  let positionAt = 0;
  for (let at = 0, i = 0; at < words.length; i++) {
    const lowId = words[at++]! >>> 0;
    const requestId = String(words[at++]! * WORD + lowId);
    const index = words[at++]!;
    const textEnd = textAt + words[at++]!;
    const numPositions = words[at++]!;
    const numTokens = words[at++]!;
    const tokenIds: number[] = [];
    for (const end = at + numTokens; at < end; at++) tokenIds.push(words[at]!);
    const end = ends.get(i);
    const delta: OwnedDelta = {
      requestId,
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
    deltas.push(delta);
  }
  return { deltas, prompts, finished, numBatchedTokens };
}
