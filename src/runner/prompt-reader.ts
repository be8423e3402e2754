import type { Backend, Readback } from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import type { Workspace } from "../backend/workspace.ts";
import type { FloatDType } from "../base/dtype.ts";
import { invariant } from "../base/errors.ts";
import {
  asFloat32,
  asInt32,
  concat,
  concatLogprobs,
  enqueueLogprobs,
  type LogprobExtents,
  readLogprobs,
} from "./logprob-reader.ts";
import type { LogprobRows, ScheduledRow, SlotJoin } from "./types.ts";

/** Log-probabilities of a chunk of prompt positions, and the prompt's tokens that follow them. */
interface PendingPromptLogprobs {
  readonly extents: LogprobExtents;
  readonly words: Readback;
  readonly tokens: Int32Array;
}

/** Log-probabilities, logits and hidden states of one row's prompt positions, on their way to the host in chunks. */
export interface PendingPromptRow {
  readonly row: number;
  readonly logprobs: readonly PendingPromptLogprobs[];
  readonly logits: readonly Readback[];
  readonly states: readonly PendingStates[];
}

/** Hidden states of a chunk of positions. */
interface PendingStates {
  readonly dtype: FloatDType;
  readonly values: Readback;
}

/** Both take the hidden states [T, H] of a batch and the indices int32 [R] of some of its tokens. */
export interface PromptReadings {
  /** Their logits float32 [R, V]. */
  readonly logits: (hidden: Tensor, indices: Tensor) => Tensor;
  /** Their hidden states [R, H] after the final norm. */
  readonly states: (hidden: Tensor, indices: Tensor) => Tensor;
}

/** A slot's prompt, of which some row may ask. All of its rows do, or none. */
interface Prompt {
  readonly tokens: Int32Array;
  /** Start of the next row: within a prompt the host knows it. */
  numComputedTokens: number;
}

/** Positions whose logits are held at once. */
export const LOGITS_CHUNK = 128;

/** Answers rows that want log-probabilities, logits or hidden states of the prompt positions they compute. */
export class PromptReader {
  /** By slot. */
  readonly #prompts = new Map<number, Prompt>();

  constructor(
    private readonly backend: Backend,
    private readonly workspace: Workspace,
    private readonly readings: PromptReadings,
    private readonly readback: (source: Tensor) => Readback,
  ) {}

  join({ slot, tokens, promptLength, numComputedTokens }: SlotJoin): void {
    this.#prompts.set(slot, { tokens: tokens.subarray(0, promptLength), numComputedTokens });
  }

  /** Takes the memory that a chunk needs besides log-probabilities. */
  reserve(): void {
    for (const name of ["promptIndices", "promptTokens"])
      this.workspace.tensor(name, "int32", [LOGITS_CHUNK]);
  }

  /** Enqueues what the rows of a batch with final hidden states [T, H] asked for. */
  enqueue(rows: readonly ScheduledRow[], hidden: Tensor): PendingPromptRow[] {
    const pending: PendingPromptRow[] = [];
    let firstToken = 0;
    for (const [row, scheduled] of rows.entries()) {
      if (scheduled.promptLogprobs !== undefined || scheduled.logits || scheduled.states)
        pending.push(this.#enqueueRow(row, scheduled, hidden, firstToken));
      firstToken += scheduled.count;
    }
    return pending;
  }

  #enqueueRow(row: number, scheduled: ScheduledRow, hidden: Tensor, firstToken: number): PendingPromptRow {
    const { count, slot, promptLogprobs } = scheduled;
    const prompt = this.#prompts.get(slot);
    invariant(prompt !== undefined, `slot ${slot} never joined`);
    const { tokens, numComputedTokens: start } = prompt;
    prompt.numComputedTokens += count;
    const logprobs: PendingPromptLogprobs[] = [];
    const logits: Readback[] = [];
    const states: PendingStates[] = [];
    for (let offset = 0; offset < count; offset += LOGITS_CHUNK) {
      const length = Math.min(LOGITS_CHUNK, count - offset);
      const first = start + offset;
      const indices = Int32Array.from({ length }, (_, i) => firstToken + offset + i);
      const at = this.#upload("promptIndices", indices);
      if (scheduled.states) {
        const chunk = this.readings.states(hidden, at);
        states.push({ dtype: chunk.dtype as FloatDType, values: this.readback(chunk) });
      }
      if (promptLogprobs === undefined && !scheduled.logits) continue;
      const chunk = this.readings.logits(hidden, at);
      if (scheduled.logits) logits.push(this.readback(chunk));
      // The last position of the prompt predicts no prompt token.
      const predicted = Math.min(length, tokens.length - 1 - first);
      if (promptLogprobs === undefined || predicted <= 0) continue;
      const next = tokens.slice(first + 1, first + 1 + predicted);
      const { words, ...extents } = enqueueLogprobs(
        this.backend,
        this.workspace,
        chunk.rows(0, predicted),
        this.#upload("promptTokens", next),
        undefined,
        promptLogprobs,
      );
      logprobs.push({ extents, words: this.readback(words), tokens: next });
    }
    return { row, logprobs, logits, states };
  }

  #upload(name: string, values: Int32Array): Tensor {
    const tensor = this.workspace.tensor(name, "int32", [values.length]);
    this.backend.upload(tensor, values);
    return tensor;
  }
}

/** The values of a copy as float32. */
function widened(bytes: Uint8Array, dtype: FloatDType): Float32Array {
  if (dtype === "float32") return asFloat32(bytes);
  const { buffer, byteOffset, byteLength } = bytes;
  if (dtype === "float16") return new Float32Array(new Float16Array(buffer, byteOffset, byteLength / 2));
  const out = new Float32Array(byteLength / 2);
  const words = new Uint32Array(out.buffer);
  const halves = new Uint16Array(buffer, byteOffset, byteLength / 2);
  // bfloat16 is the upper half of a float32.
  for (let i = 0; i < halves.length; i++) words[i] = halves[i]! << 16;
  return out;
}

/** Waits for the copies; maps row → answer. */
export function readPromptRows(pending: readonly PendingPromptRow[]) {
  const promptLogprobs = new Map<number, LogprobRows>();
  const logits = new Map<number, Float32Array>();
  const states = new Map<number, Float32Array>();
  for (const answer of pending) {
    if (answer.logprobs.length > 0)
      promptLogprobs.set(
        answer.row,
        concatLogprobs(
          answer.logprobs.map(({ extents, words, tokens }) =>
            readLogprobs(extents, asInt32(words.wait()), tokens),
          ),
        ),
      );
    if (answer.logits.length > 0)
      logits.set(answer.row, concat(answer.logits.map((chunk) => asFloat32(chunk.wait()))));
    if (answer.states.length > 0)
      states.set(answer.row, concat(answer.states.map(({ dtype, values }) => widened(values.wait(), dtype))));
  }
  return { promptLogprobs, logits, states };
}
