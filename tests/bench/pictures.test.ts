import { expect, setDefaultTimeout, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { BOOK, makePictures } from "../../bench/pictures.ts";
import { drawBars, Picture, WIDTH } from "../../bench/svg.ts";

setDefaultTimeout(300_000);

test("the book's pictures are those that bench/pictures.ts makes, and each stands in its chapter", async () => {
  const pictures = await makePictures();
  const files = readdirSync(BOOK).filter((name) => name.endsWith(".svg"));
  expect(files.sort()).toEqual([...pictures.keys()].sort());
  for (const [name, picture] of pictures) {
    expect(readFileSync(join(BOOK, name), "utf8"), name).toBe(picture);
    expect(readFileSync(join(BOOK, name.replace(".svg", ".md")), "utf8"), name).toContain(`](${name})`);
  }
});

test("bars stay within the picture, and text is no markup", () => {
  const picture = new Picture("a < b", "bars");
  drawBars(picture, [
    { label: "<one>", parts: [1, 2], value: "3" },
    { label: "two", parts: [1], mark: 4, value: "1 & more" },
  ]);
  const svg = String(picture);
  expect(svg).toContain("&lt;one&gt;");
  expect(svg).toContain("1 &amp; more");
  const rights = [...svg.matchAll(/<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"/g)].map(
    ([, x, width]) => Number(x) + Number(width),
  );
  expect(rights).toHaveLength(3);
  expect(Math.max(...rights)).toBeLessThan(WIDTH - 24);
});
