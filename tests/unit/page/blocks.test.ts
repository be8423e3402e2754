import { expect, setDefaultTimeout, test } from "bun:test";
import { readBlocks } from "../../../src/page/chat/blocks.ts";

setDefaultTimeout(300_000);

const rawOf = (text: string) =>
  readBlocks(text)
    .blocks.map(({ raw }) => raw)
    .join("");

test("whatever a model writes is read, and nothing of it is lost", () => {
  const texts = [
    ...[">".repeat(20_000), "- ".repeat(20_000), "[".repeat(20_000), "_a_".repeat(20_000)],
    ...[`a${" ".repeat(50_000)}b`, "\t- a\r\n\r\nb\u00a0\tc", "", "# a\n\nb"],
    Array.from({ length: 200 }, (_, i) => `${" ".repeat(2 * i)}- ${i}\n`).join(""),
  ];
  for (const text of texts) expect(rawOf(text) === text).toBeTrue();
});

test("a text that grows has the blocks that it has as a whole", () => {
  const text =
    "# a\n\nb *c*\n- d\n- e\n\n  f\n\n| g | h |\n| - | - |\n| i | j |\n\n```ts\nk\n\nl\n```\nm\n===\n\n> n\no";
  let blocks = readBlocks("");
  for (let end = 1; end <= text.length; end++) blocks = readBlocks(text.slice(0, end), blocks);
  expect(blocks).toEqual(readBlocks(text));
});

test("a growing text keeps the blocks that it had, all but its last two", () => {
  const before = readBlocks("a\n\nb\n\nc\n\nd");
  const after = readBlocks("a\n\nb\n\nc\n\nd e", before);
  expect(after.blocks[0]).toBe(before.blocks[0]!);
  expect(readBlocks("A\n\nb", before).blocks[0]).not.toBe(before.blocks[0]!);
});

test("long code is one block, however long; other long texts are cut at ends of lines", () => {
  const code = `\`\`\`\n${"x = 1\n\n".repeat(10_000)}\`\`\`\n`;
  expect(readBlocks(code).blocks.map(({ type }) => type)).toEqual(["code"]);
  const lines = "a word in a line\n".repeat(5_000);
  const { blocks } = readBlocks(lines);
  expect(blocks.length).toBeGreaterThan(4);
  for (const { raw } of blocks.slice(0, -1)) expect(raw.endsWith("\n")).toBeTrue();
});
