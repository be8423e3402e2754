import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { Glob } from "bun";
import { blocksOf, DOCUMENTS as SNIPPET_DOCUMENTS } from "../snippets/blocks.ts";
import { RULES } from "../snippets/rules.ts";

setDefaultTimeout(300_000);

const ROOT = join(import.meta.dir, "../..");
const DOCUMENTS = [
  "README.md",
  ...new Glob("docs/**/*.md").scanSync(ROOT),
  ...new Glob(".github/*.md").scanSync({ cwd: ROOT, dot: true }),
].sort();

const read = (file: string) => readFileSync(join(ROOT, file), "utf8");

/** Paths from the root, wherever they stand. */
const FROM_ROOT = /(?<![\w./-])(?:bench|docs|examples|kernels-cu|models|src|tests)\/[\w./-]*\w\/?/g;
/** Files and folders in backticks: named from the root, `src/`, `kernels-cu/` or a folder named before them in the line. */
const QUOTED = /`([\w-][\w./-]*(?:\.(?:cuh?|md|py|sh|ts)|\/))`/g;
/** Targets of links within the repository. */
const LINKED = /\]\((?!https?:|#)([^)#]+)/g;
/** Folders of other programs. */
const FOREIGN = new Set(["blobs/"]);

/** The paths that a document names and that lead nowhere. */
function deadPaths(document: string): string[] {
  const exists = (path: string) => existsSync(join(ROOT, path));
  return read(document)
    .split("\n")
    .flatMap((line) => {
      const folders = [".", "src", "kernels-cu"];
      const dead = [...line.matchAll(FROM_ROOT)].map(([path]) => path).filter((path) => !exists(path));
      for (const [, path] of line.matchAll(QUOTED)) {
        const found = folders.map((folder) => join(folder, path!)).find(exists);
        if (found !== undefined) folders.push(dirname(found), found);
        else if (!FOREIGN.has(path!)) dead.push(path!);
      }
      for (const [, path] of line.matchAll(LINKED))
        if (!exists(join(dirname(document), path!))) dead.push(path!);
      return dead;
    });
}

describe("the paths that a document names exist", () => {
  test.each(DOCUMENTS)("%s", (document) => {
    expect(deadPaths(document)).toEqual([]);
  });
});

describe("the README counts lines to within 5%", () => {
  const linesOf = (pattern: string) =>
    [...new Glob(pattern).scanSync(ROOT)].reduce((sum, file) => sum + read(file).split("\n").length - 1, 0);

  test.each([
    ["TypeScript", "src/**/*.{ts,tsx}"],
    ["CUDA C++", "kernels-cu/**/*.{cu,cuh}"],
  ])("of %s", (language, pattern) => {
    const [, stated] = read("README.md").match(RegExp(`([\\d,]+) lines of ${RegExp.escape(language)}`)) ?? [];
    const count = linesOf(pattern);
    const difference = Math.abs(Number(stated?.replaceAll(",", "")) - count) / count;
    expect(difference, `the README states ${stated}, there are ${count}`).toBeLessThan(0.05);
  });
});

test("docs/cpu.md states the size of the kernels to within 5%", () => {
  const stated = 1000 * Number(read("docs/cpu.md").match(/a module of (\d+) KB/)?.[1]);
  const { size } = Bun.file(join(ROOT, "kernels-wasm/kernels.wasm"));
  expect(Math.abs(stated - size) / size, `it has ${size} bytes`).toBeLessThan(0.05);
});

describe("code in documents", () => {
  const blocks = blocksOf(SNIPPET_DOCUMENTS);

  test("has rules that fit one block each", () => {
    expect(blocks.length).toBeGreaterThan(20);
    const counts = RULES.map((rule) => [rule.has, blocks.filter(({ rules }) => rules.includes(rule)).length]);
    expect(counts).toEqual(RULES.map(({ has }) => [has, 1]));
    expect(blocks.filter(({ rules }) => rules.length > 1)).toEqual([]);
  });
});
