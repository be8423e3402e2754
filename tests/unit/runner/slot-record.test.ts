import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { SLOT_WORDS, SlotFlag, SlotWord } from "../../../src/backend/backend.ts";
import { InvariantError } from "../../../src/base/errors.ts";
import { hasPenalties, isPlain, packSlotRecord } from "../../../src/runner/slot-record.ts";
import type { SlotSampling } from "../../../src/runner/types.ts";

setDefaultTimeout(300_000);

const PLAIN: SlotSampling = {
  ...{ temperature: 0, topP: 1, topK: 0, minP: 0 },
  ...{ repetitionPenalty: 1, presencePenalty: 0, frequencyPenalty: 0, seed: 0n },
  ...{ logitBias: [], bannedTokens: [], bannedUntil: 0, allowedTokenIds: undefined, badWords: [] },
};
const FOREVER = 0x7fffffff;

const pack = (sampling: Partial<SlotSampling>, vocabSize = 70) =>
  packSlotRecord({ ...PLAIN, ...sampling }, vocabSize);
const asFloats = (words: Uint32Array) => new Float32Array(words.buffer);

/** [token, value, until] of each edit. */
function edits(words: Uint32Array): number[][] {
  const floats = asFloats(words);
  return Array.from({ length: words.length / 3 }, (_, i) => [
    words[3 * i]!,
    floats[3 * i + 1]!,
    words[3 * i + 2]!,
  ]);
}

test("a slot is plain while a temperature is all that it asks for", () => {
  const plain = (sampling: Partial<SlotSampling>) => isPlain({ ...PLAIN, ...sampling });
  expect([plain({}), plain({ temperature: 1.5, seed: 9n })]).toEqual([true, true]);
  const filters: Partial<SlotSampling>[] = [{ topP: 0.9 }, { topK: 1 }, { minP: 0.1 }];
  for (const filter of filters) {
    expect(plain({ ...filter, temperature: 0 })).toBe(true);
    expect(plain({ ...filter, temperature: 1 })).toBe(false);
  }
  for (const edit of [
    ...[{ repetitionPenalty: 1.1 }, { presencePenalty: 1 }, { frequencyPenalty: -1 }],
    ...[{ logitBias: [[1, 2]] as const }, { bannedTokens: [1], bannedUntil: 4 }],
    ...[{ allowedTokenIds: [3] }, { allowedTokenIds: [] }, { badWords: [[1]] }, { masked: true }],
  ] satisfies Partial<SlotSampling>[]) {
    expect(plain({ ...edit, temperature: 0 })).toBe(false);
    // Exactly those whose record has a flag.
    expect(pack(edit).params[SlotWord.flags]).not.toBe(0);
  }
});

describe("the parameter words", () => {
  test("floats are stored as their bits, integers as they are", () => {
    const { params } = pack({
      ...{ temperature: 0.7, topP: 0.9, minP: 0.05, topK: 40 },
      ...{ repetitionPenalty: 1.25, presencePenalty: -0.5, frequencyPenalty: 2 },
      seed: 0xfedcba9876543210n,
    });
    expect(params).toHaveLength(SLOT_WORDS);
    const floats = asFloats(params);
    const float = (name: keyof typeof SlotWord) => floats[SlotWord[name]];
    expect([float("temperature"), float("topP"), float("minP")]).toEqual([0.7, 0.9, 0.05].map(Math.fround));
    expect([float("repetitionPenalty"), float("presencePenalty"), float("frequencyPenalty")]).toEqual([
      ...[1.25, -0.5, 2],
    ]);
    expect(params[SlotWord.topK]).toBe(40);
    expect(params[SlotWord.seedLow]).toBe(0x76543210);
    expect(params[SlotWord.seedHigh]).toBe(0xfedcba98);
  });

  test("nothing to process: no flag, no table", () => {
    const { params, ...tables } = pack({});
    expect(params[SlotWord.flags]).toBe(0);
    expect(params[SlotWord.editCount]).toBe(0);
    expect(tables).toEqual({ edits: undefined, badWords: undefined, allowed: undefined });
  });

  test("each kind of processing raises its own flag", () => {
    const flags = (sampling: Partial<SlotSampling>) => pack(sampling).params[SlotWord.flags]!;
    expect(flags({ repetitionPenalty: 1.1 })).toBe(SlotFlag.penalties);
    expect(flags({ presencePenalty: -1 })).toBe(SlotFlag.penalties);
    expect(flags({ frequencyPenalty: 0.1 })).toBe(SlotFlag.penalties);
    expect(flags({ logitBias: [[1, 0]] })).toBe(SlotFlag.edits);
    expect(flags({ bannedTokens: [2], bannedUntil: 9 })).toBe(SlotFlag.edits);
    expect(flags({ allowedTokenIds: [3] })).toBe(SlotFlag.allowed);
    expect(flags({ badWords: [[4]] })).toBe(SlotFlag.badWords);
    const all = { presencePenalty: 1, bannedTokens: [2], allowedTokenIds: [3], badWords: [[4]] };
    expect(flags(all)).toBe(Object.values(SlotFlag).reduce((sum, flag) => sum + flag, 0));
  });

  test("counts are needed exactly when a penalty is on", () => {
    expect(hasPenalties(PLAIN)).toBe(false);
    expect(hasPenalties({ ...PLAIN, frequencyPenalty: 0.5 })).toBe(true);
  });
});

describe("logit edits", () => {
  test("biases hold forever, bans are minus infinity until their position", () => {
    const record = pack({
      logitBias: [
        [7, -1.5],
        [3, 100],
      ] as const,
      bannedTokens: [5, 6],
      bannedUntil: 12,
    });
    expect(record.params[SlotWord.editCount]).toBe(4);
    expect(edits(record.edits!)).toEqual([
      [7, -1.5, FOREVER],
      [3, 100, FOREVER],
      [5, -Infinity, 12],
      [6, -Infinity, 12],
    ]);
  });

  test("2,048 edits fit, one more is a bug of the caller", () => {
    const bannedTokens = Array.from({ length: 2047 }, (_, i) => i);
    expect(pack({ logitBias: [[1, 1]], bannedTokens }).edits).toHaveLength(3 * 2048);
    expect(() =>
      pack({
        logitBias: [
          [1, 1],
          [2, 1],
        ] as const,
        bannedTokens,
      }),
    ).toThrow(InvariantError);
  });
});

test("allowed tokens are one bit each, 32 a word, the last word padded", () => {
  const { allowed } = pack({ allowedTokenIds: [0, 31, 32, 69] });
  expect([...allowed!]).toEqual([0x80000001, 1, 1 << 5]);
  expect(pack({ allowedTokenIds: [0] }, 64).allowed).toHaveLength(2);
});

test("bad words are length-prefixed and ended by 0", () => {
  expect([...pack({ badWords: [[5], [6, 7, 8]] }).badWords!]).toEqual([1, 5, 3, 6, 7, 8, 0]);
  const fitting = Array.from({ length: 1023 }, () => [1]);
  expect(pack({ badWords: fitting }).badWords).toHaveLength(2047);
  expect(() => pack({ badWords: [...fitting, [1]] })).toThrow(InvariantError);
});
