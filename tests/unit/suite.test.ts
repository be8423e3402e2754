import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { Glob } from "bun";

setDefaultTimeout(300_000);

const ROOT = join(import.meta.dir, "../..");
const files = [...new Glob("tests/**/*.test.ts").scanSync(ROOT)].sort();
const filesWith = (pattern: RegExp) =>
  files.filter((file) => pattern.test(readFileSync(join(ROOT, file), "utf8")));

describe("the tests", () => {
  test("lie in a folder for each room, as the code does", () => {
    const folders = new Set(files.map((file) => dirname(relative("tests/unit", file))));
    const mirrored = [...folders].filter((folder) => !folder.startsWith(".."));
    expect(mirrored.length).toBeGreaterThan(10);
    expect(mirrored.filter((folder) => !existsSync(join(ROOT, "src", folder)))).toEqual([]);
  });

  test("have time on a busy machine: what runs for five minutes is stuck", () => {
    expect(files.length).toBeGreaterThan(80);
    expect(filesWith(/^setDefaultTimeout\(300_000\);$/m)).toEqual(files);
  });

  test("set nothing a limit on the wall clock", () => {
    expect(filesWith(/(?:performance|Date)\.now\(\) - [^;]*toBeLess/)).toEqual([]);
  });
});
