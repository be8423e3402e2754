import type { Fence, Readback } from "../backend/backend.ts";
import { asInt32, type LogprobExtents, readLogprobs, sliceLogprobs } from "./logprob-reader.ts";
import type { Answer } from "./mailbox.ts";
import { type PendingPromptRow, readPromptRows } from "./prompt-reader.ts";
import type { LogprobRows, ScheduledRow, StepResult } from "./types.ts";

/** A launched step. The tokens that it draws are its answer in the mailbox. */
export interface PendingStep {
  readonly rows: readonly ScheduledRow[];
  readonly numSamples: number;
  readonly done: Fence;
  readonly logprobs: PendingLogprobs | undefined;
  readonly prompt: readonly PendingPromptRow[];
}

/** Log-probabilities of the samples that ask for them: in the mailbox's answer, or copied if they are too many. */
export interface PendingLogprobs extends LogprobExtents {
  readonly copy: Readback | undefined;
}

/** The result of a step with this answer; `tokens` has one for each sampled row. Waits for the copies. */
export function readStep({ rows, numSamples, logprobs, prompt }: PendingStep, answer: Answer): StepResult {
  const tokens = answer.tokens.slice(0, numSamples);
  const offsets = new Int32Array(rows.length + 1);
  for (let i = 0; i < rows.length; i++) offsets[i + 1] = offsets[i]! + Number(rows[i]!.sample);
  const byRow = new Map<number, LogprobRows>();
  if (logprobs !== undefined) {
    const asked = [...rows.keys()].filter((i) => rows[i]!.sample && rows[i]!.logprobs !== undefined);
    const words = logprobs.copy ? asInt32(logprobs.copy.wait()) : answer.logprobs;
    const chosen = Int32Array.from(asked, (i) => tokens[offsets[i]!]!);
    const all = readLogprobs(logprobs, words, chosen);
    for (const [at, i] of asked.entries()) byRow.set(i, sliceLogprobs(all, at, at + 1, rows[i]!.logprobs!));
  }
  return { tokens, offsets, logprobs: byRow, ...readPromptRows(prompt) };
}
