import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { codePoints, GivenTextOffsets, TextOffsets } from "../../../src/server/replies/text-offsets.ts";
import { TokenTable } from "../../../src/tokenizer/token-table.ts";

setDefaultTimeout(300_000);

const SPELLINGS = ["Hi", " there", "<|end|>", "é", [0xf0, 0x9f], [0x98, 0x80], "x", " Hi"] as const;
const [HI, THERE, END, E, FIRST_HALF, SECOND_HALF, X, SPACED_HI] = [0, 1, 2, 3, 4, 5, 6, 7] as const;

function tableOf(spellings: readonly (string | readonly number[])[], special: readonly number[]): TokenTable {
  const tokens = spellings.map((spelling) => Buffer.from(spelling as string));
  const starts = new Int32Array(tokens.length + 1);
  for (const [i, { length }] of tokens.entries()) starts[i + 1] = starts[i]! + length;
  const kinds = Uint8Array.from(tokens, (_, i) => (special.includes(i) ? 2 : 0));
  return new TokenTable({ bytes: new Uint8Array(Buffer.concat(tokens)), starts, kinds });
}

const TOKENS = tableOf(SPELLINGS, [END]);

const offsets = (from: { next(id: number): number }, ids: readonly number[]) =>
  ids.map((id) => from.next(id));

describe("offsets of generated tokens", () => {
  test("count code points, and parts of a character where it begins", () => {
    const ids = [HI, FIRST_HALF, SECOND_HALF, E, X];
    expect(offsets(new TextOffsets(TOKENS, 0, true), ids)).toEqual([0, 2, 2, 3, 4]);
    expect(offsets(new TextOffsets(TOKENS, 10, true), ids)).toEqual([10, 12, 12, 13, 14]);
  });

  test("leave special tokens out as the text does", () => {
    const ids = [HI, END, THERE, END, X];
    expect(offsets(new TextOffsets(TOKENS, 0, true), ids)).toEqual([0, 2, 2, 8, 8]);
    expect(offsets(new TextOffsets(TOKENS, 0, false), ids)).toEqual([0, 2, 9, 15, 22]);
  });
});

describe("offsets in a given text", () => {
  const inText = (text: string, ids: readonly number[]) => offsets(new GivenTextOffsets(TOKENS, text), ids);

  test("are those of its tokens", () => {
    expect(inText("Hi there😀é", [HI, THERE, FIRST_HALF, SECOND_HALF, E])).toEqual([0, 2, 8, 8, 9]);
  });

  test("know which special tokens it has", () => {
    expect(inText("Hi<|end|>x", [END, HI, END, X])).toEqual([0, 0, 2, 9]);
    expect(inText("Hi there", [HI, END, THERE])).toEqual([0, 2, 2]);
  });

  test("bear with a blank that the tokenizer put in front", () => {
    expect(inText("Hi there", [SPACED_HI, THERE])).toEqual([0, 2]);
  });

  test("stay within a text that was normalised", () => {
    expect(inText("e\u0301 there", [E, THERE])).toEqual([0, 1]);
    expect(inText("😀", [HI, HI, X])).toEqual([0, 1, 1]);
  });
});

test("code points", () => {
  expect(["", "a", "é", "😀", "a😀\u{10FFFF}b"].map(codePoints)).toEqual([0, 1, 1, 1, 4]);
});
