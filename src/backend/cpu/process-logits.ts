import { COUNT_IN_PROMPT, LOGIT_EDIT_WORDS, SlotFlag } from "../backend.ts";
import type { DrawnSamples } from "./batch.ts";
import { type HostSlots, Slot } from "./slots.ts";

/** Rows of logits [N, V] after `processRow`, of those whose slots have a flag; no others are written. See `Backend.processLogits`. */
export function processRows(
  out: Float32Array,
  logits: Float32Array,
  samples: DrawnSamples,
  slots: HostSlots,
): void {
  for (let row = 0; row < samples.slots.length; row++) {
    const slot = new Slot(slots, samples.slots[row]!);
    if (slot.word("flags") === 0) continue;
    const [start, end] = [row * slots.vocab, (row + 1) * slots.vocab];
    const result = out.subarray(start, end);
    result.set(logits.subarray(start, end));
    processRow(result, slot, samples.positions[row]!);
  }
}

/**
 * Changes one row of logits [V] in place, for the token that follows `position`: allowed mask, bad words and edits
 * first, then repetition, frequency and presence penalties.
 */
function processRow(logits: Float32Array, slot: Slot, position: number): void {
  if (slot.has(SlotFlag.allowed)) maskDisallowed(logits, slot.allowed);
  if (slot.has(SlotFlag.badWords)) banBadWords(logits, slot.badWords, slot.tokens, position);
  if (slot.has(SlotFlag.edits)) applyEdits(logits, slot.edits, position + 1);
  if (slot.has(SlotFlag.penalties)) applyPenalties(logits, slot);
}

function maskDisallowed(logits: Float32Array, allowed: Uint32Array): void {
  for (let token = 0; token < logits.length; token++) {
    if (((allowed[token >>> 5]! >>> (token & 31)) & 1) === 0) logits[token] = -Infinity;
  }
}

/** Bans the last token of each sequence whose other tokens are the last ones of the history. */
function banBadWords(
  logits: Float32Array,
  sequences: Uint32Array,
  history: Int32Array,
  position: number,
): void {
  for (let start = 0; start < sequences.length && sequences[start] !== 0; ) {
    const last = start + sequences[start]!;
    const prefix = sequences.subarray(start + 1, last);
    const historyStart = position + 1 - prefix.length;
    if (historyStart >= 0 && prefix.every((token, i) => token === history[historyStart + i])) {
      logits[sequences[last]!] = -Infinity;
    }
    start = last + 1;
  }
}

/** `edits` holds token id, value to add (float bits), and the first position where the entry no longer applies. */
function applyEdits(logits: Float32Array, edits: Uint32Array, sampledPosition: number): void {
  const values = new Float32Array(edits.buffer, edits.byteOffset, edits.length);
  for (let i = 0; i < edits.length; i += LOGIT_EDIT_WORDS) {
    if (sampledPosition < edits[i + 2]!) logits[edits[i]!]! += values[i + 1]!;
  }
}

function applyPenalties(logits: Float32Array, slot: Slot): void {
  const repetition = slot.float("repetitionPenalty");
  const frequency = slot.float("frequencyPenalty");
  const presence = slot.float("presencePenalty");
  const { counts } = slot;
  for (let token = 0; token < logits.length; token++) {
    const seen = counts[token]!;
    if (seen === 0) continue;
    let logit = logits[token]!;
    logit = logit > 0 ? logit / repetition : logit * repetition;
    const generated = seen & ~COUNT_IN_PROMPT;
    if (generated > 0) logit -= frequency * generated + presence;
    logits[token] = logit;
  }
}
