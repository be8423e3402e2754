import { describe, expect, setDefaultTimeout, test } from "bun:test";
import fc from "fast-check";
import { IncrementalDetokenizer } from "../../../src/tokenizer/detokenizer.ts";
import type { Tokenizer } from "../../../src/tokenizer/tokenizer.ts";
import { TEXTS, tokenizers } from "./models.ts";

setDefaultTimeout(300_000);

function deltasOf(tokenizer: Tokenizer, ids: readonly number[], skipSpecialTokens = true): string[] {
  const detokenizer = new IncrementalDetokenizer(tokenizer, { skipSpecialTokens });
  return [...ids.map((id) => detokenizer.push(id)), detokenizer.flush()];
}

describe.each(Object.keys(tokenizers) as (keyof typeof tokenizers)[])("%s", (name) => {
  const tokenizer = tokenizers[name];
  test("any tokens: the deltas are the decoded text", () => {
    const ids = fc.array(fc.nat(tokenizer.vocabSize + 3), { maxLength: 40 });
    fc.assert(
      fc.property(ids, fc.boolean(), (input, skipSpecialTokens) => {
        const deltas = deltasOf(tokenizer, input, skipSpecialTokens);
        expect(deltas.join("")).toBe(tokenizer.decode(input, { skipSpecialTokens }));
      }),
    );
  });

  test("any text: no delta holds half a character", () => {
    const text = fc.oneof(fc.constantFrom(...TEXTS), fc.string({ unit: "grapheme", maxLength: 40 }));
    fc.assert(
      fc.property(text, (input) => {
        const deltas = deltasOf(tokenizer, tokenizer.encode(input));
        for (const delta of deltas)
          expect(delta.isWellFormed() && (!delta.includes("\uFFFD") || input.includes("\uFFFD"))).toBe(true);
        expect(deltas.join("")).toBe(tokenizer.decode(tokenizer.encode(input)));
      }),
    );
  });
});

describe("context", () => {
  const { spm, qwen3 } = tokenizers;
  const hello = spm.tokenToId("▁hello")!;
  const bytes = (text: string) => [...new TextEncoder().encode(text)].map((byte) => byte + 3);

  test.each<[string, Tokenizer, number[], number[], string[]]>([
    ["the text's first space is dropped", spm, [], [hello, hello], ["hello", " hello"]],
    ["not after a prompt", spm, [hello], [hello], [" hello"]],
    ["but after special tokens alone", spm, [1], [hello], ["hello"]],
    ["unless they are shown", spm, [1, hello], [hello], [" hello"]],
    ["a character begun in the prompt", spm, bytes("é").slice(0, 1), bytes("é").slice(1), ["é"]],
    ["byte-level", qwen3, qwen3.encode("a"), qwen3.encode(" b"), [" b"]],
  ])("%s", (_, tokenizer, context, ids, deltas) => {
    const detokenizer = new IncrementalDetokenizer(tokenizer, { context });
    expect(ids.map((id) => detokenizer.push(id))).toEqual(deltas);
    expect(detokenizer.flush()).toBe("");
  });
});

test("an unfinished character becomes U+FFFD at the end only", () => {
  const detokenizer = new IncrementalDetokenizer(tokenizers.spm);
  expect([detokenizer.push(3 + 0xf0), detokenizer.push(3 + 0x9f), detokenizer.flush()]).toEqual([
    "",
    "",
    "\uFFFD",
  ]);
});
