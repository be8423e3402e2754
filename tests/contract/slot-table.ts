import {
  type SampleRows,
  SLOT_WORDS,
  SlotFlag,
  type SlotTensors,
  SlotWord,
} from "../../src/backend/backend.ts";
import { MAX_BAD_WORD_TOKENS, MAX_LOGIT_EDITS } from "../../src/base/sampling-params.ts";
import { type Fixture, POISON } from "./fixture.ts";

/** Sampling parameters and history of one slot. Left out = off; penalties are on when `repetitionPenalty` is given. */
export interface SlotParams {
  readonly temperature?: number;
  readonly topP?: number;
  readonly minP?: number;
  readonly topK?: number;
  readonly repetitionPenalty?: number;
  readonly presencePenalty?: number;
  readonly frequencyPenalty?: number;
  readonly seed?: readonly [low: number, high: number];
  readonly edits?: readonly { readonly token: number; readonly value: number; readonly until: number }[];
  readonly badWords?: readonly (readonly number[])[];
  readonly allowed?: readonly number[];
  readonly tokens?: readonly number[];
  /** How many of `tokens` are the prompt; the rest were generated. */
  readonly promptLength?: number;
}

/** Slot tensors that hold `slots`, vacant without tokens. What their flags say is off, and unused history, is poison. */
export function slotTensors(
  fixture: Fixture,
  slots: readonly SlotParams[],
  { vocab, capacity = 64 }: { vocab: number; capacity?: number },
): SlotTensors {
  const count = slots.length;
  const maskWords = Math.ceil(vocab / 32);
  const poisonedWords = (perSlot: number) => new Uint32Array(count * perSlot).fill(0xffffffff);
  const tokens = new Int32Array(count * capacity).fill(-1);
  const lengths = Int32Array.from(slots, ({ tokens }) => tokens?.length ?? 0);
  const params = new Uint32Array(count * SLOT_WORDS);
  const edits = poisonedWords(MAX_LOGIT_EDITS * 3);
  const badWords = poisonedWords(MAX_BAD_WORD_TOKENS);
  const allowed = poisonedWords(maskWords);
  const counts = poisonedWords(vocab);

  for (const [i, slot] of slots.entries()) {
    tokens.set(slot.tokens ?? [], i * capacity);
    writeParams(params.subarray(i * SLOT_WORDS, (i + 1) * SLOT_WORDS), slot);
    for (const [j, { token, value, until }] of (slot.edits ?? []).entries()) {
      edits.set([token, bitsOf(value), until], (i * MAX_LOGIT_EDITS + j) * 3);
    }
    if (slot.badWords) {
      const packed = [...slot.badWords.flatMap((sequence) => [sequence.length, ...sequence]), 0];
      badWords.set(packed, i * MAX_BAD_WORD_TOKENS);
    }
    if (slot.allowed) {
      const mask = allowed.subarray(i * maskWords, (i + 1) * maskWords).fill(0);
      for (const token of slot.allowed) mask[token >>> 5]! |= 1 << (token & 31);
    }
    if (slot.repetitionPenalty !== undefined) {
      counts.set(countsOf(slot.tokens ?? [], slot.promptLength ?? 0, vocab), i * vocab);
    }
  }
  const blockTables = fixture.output("int32", [1, count, 1]);
  fixture.backend.fill(blockTables, POISON);
  return {
    tokens: fixture.stateOf("int32", tokens, [count, capacity]),
    lengths: fixture.stateOf("int32", lengths, [count]),
    numComputedTokens: fixture.stateOf("int32", lengths, [count]),
    blockTables,
    params: fixture.stateOf("uint32", params, [count, SLOT_WORDS]),
    edits: fixture.stateOf("uint32", edits, [count, MAX_LOGIT_EDITS, 3]),
    badWords: fixture.stateOf("uint32", badWords, [count, MAX_BAD_WORD_TOKENS]),
    allowed: fixture.stateOf("uint32", allowed, [count, maskWords]),
    counts: fixture.stateOf("uint32", counts, [count, vocab]),
  };
}

/** The words of `SlotTensors.counts` for one history. */
export function countsOf(tokens: readonly number[], promptLength: number, vocab: number): Uint32Array {
  const counts = new Uint32Array(vocab);
  for (const [i, token] of tokens.entries()) {
    if (i < promptLength) counts[token] = (counts[token]! | 0x80000000) >>> 0;
    else counts[token]!++;
  }
  return counts;
}

export function sampleRows(
  fixture: Fixture,
  rowSlots: readonly number[],
  positions: readonly number[],
): SampleRows {
  const tokenIndices = fixture.ints(rowSlots.map((_, i) => i));
  return { slots: fixture.ints(rowSlots), positions: fixture.ints(positions), tokenIndices };
}

function writeParams(words: Uint32Array, slot: SlotParams): void {
  const floats = new Float32Array(words.buffer, words.byteOffset, words.length);
  floats[SlotWord.temperature] = slot.temperature ?? 1;
  floats[SlotWord.topP] = slot.topP ?? 1;
  floats[SlotWord.minP] = slot.minP ?? 0;
  words[SlotWord.topK] = slot.topK ?? 0;
  floats[SlotWord.repetitionPenalty] = slot.repetitionPenalty ?? 1;
  floats[SlotWord.presencePenalty] = slot.presencePenalty ?? 0;
  floats[SlotWord.frequencyPenalty] = slot.frequencyPenalty ?? 0;
  [words[SlotWord.seedLow], words[SlotWord.seedHigh]] = slot.seed ?? [0, 0];
  words[SlotWord.editCount] = slot.edits?.length ?? 0;
  words[SlotWord.flags] =
    (slot.repetitionPenalty === undefined ? 0 : SlotFlag.penalties) |
    (slot.edits ? SlotFlag.edits : 0) |
    (slot.allowed ? SlotFlag.allowed : 0) |
    (slot.badWords ? SlotFlag.badWords : 0);
}

function bitsOf(value: number): number {
  return new Uint32Array(Float32Array.of(value).buffer)[0]!;
}
