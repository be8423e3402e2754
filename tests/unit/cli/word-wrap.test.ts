import { expect, setDefaultTimeout, test } from "bun:test";
import { WordWrap } from "../../../src/cli/word-wrap.ts";

setDefaultTimeout(300_000);

/** Wraps a text that comes in pieces of `size` characters. */
function wrap(text: string, columns: number, size = 1): string {
  const wrapper = new WordWrap(() => columns);
  let out = "";
  for (let at = 0; at < text.length; at += size) out += wrapper.push(text.slice(at, at + size));
  return out + wrapper.end();
}

test.each([
  ["one two three", 7, "one two\nthree"],
  ["one two three", 8, "one two\nthree"],
  ["one two three", 6, "one\ntwo\nthree"],
  ["one  two", 5, "one\ntwo"],
  ["  indented text", 9, "indented\ntext"],
  ["  indented text", 10, "  indented\ntext"],
  ["of unknown width", 0, "of unknown width"],
  ["a\n\nb c", 3, "a\n\nb c"],
  ["ends \nhere ", 20, "ends\nhere"],
  ["abcdefgh ij", 4, "abcd\nefgh\nij"],
  ["x abcdefgh", 4, "x\nabcd\nefgh"],
  ["a\tb", 8, "a\nb"],
  ["a\tb", 9, "a\tb"],
  ["猫が好きです", 6, "猫が好\nきです"],
  ["😀😀😀", 4, "😀😀\n😀"],
])("%j in %d columns", (text, columns, wrapped) => {
  expect(wrap(text, columns)).toBe(wrapped);
  expect(wrap(text, columns, text.length)).toBe(wrapped);
});

test("a word is written once it is whole, and the width may change", () => {
  let columns = 10;
  const wrapper = new WordWrap(() => columns);
  expect([wrapper.push("one tw"), wrapper.push("o "), wrapper.push("three")]).toEqual(["one", " two", ""]);
  expect(wrapper.push(" ")).toBe("\nthree");
  columns = 20;
  expect(wrapper.push("four ") + wrapper.end()).toBe(" four");
  expect(wrapper.push("next ")).toBe("next");
});
