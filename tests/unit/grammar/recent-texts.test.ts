import { expect, setDefaultTimeout, test } from "bun:test";
import { RecentTexts } from "../../../src/grammar/recent-texts.ts";

setDefaultTimeout(300_000);

test("texts that were used last are kept, as far as the characters go", () => {
  const dropped: number[] = [];
  const texts = new RecentTexts<number>(6, (value) => dropped.push(value));
  texts.add("aa", 1);
  texts.add("bb", 2);
  texts.add("cc", 3);
  expect(texts.get("aa")).toBe(1);
  texts.add("d", 4);
  expect([dropped, texts.size, texts.has("bb"), texts.has("aa")]).toEqual([[2], 3, false, true]);
  texts.add("e", 5, 3);
  expect([dropped, texts.size]).toEqual([[2, 3], 3]);
});

test("one is kept, however long", () => {
  const dropped: number[] = [];
  const texts = new RecentTexts<number>(3, (value) => dropped.push(value));
  texts.add("a", 1);
  texts.add("bbbbb", 2);
  expect([dropped, texts.get("bbbbb")]).toEqual([[1], 2]);
  texts.add("c", 3);
  expect([dropped, texts.size]).toEqual([[1, 2], 1]);
});
