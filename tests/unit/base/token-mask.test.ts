import { expect, setDefaultTimeout, test } from "bun:test";
import { tokenMask } from "../../../src/base/token-mask.ts";

setDefaultTimeout(300_000);

test("tokens are bits of as many words as the vocabulary takes", () => {
  expect(tokenMask(40, [0, 33])).toEqual(Uint32Array.of(1, 2));
  expect(tokenMask(40, [])).toEqual(Uint32Array.of(0, 0));
});

test("all tokens of the vocabulary, and no others", () => {
  expect(tokenMask(40)).toEqual(Uint32Array.of(0xffffffff, 0xff));
  expect(tokenMask(64)).toEqual(Uint32Array.of(0xffffffff, 0xffffffff));
});
