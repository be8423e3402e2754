import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { Glob } from "bun";
import { ASSETS, WORKERS } from "../../../.ci/binary.ts";
import { isCompiled, programFile } from "../../../src/base/program-file.ts";

setDefaultTimeout(300_000);

const ROOT = join(import.meta.dir, "../../..");
const SOURCES = [...new Glob("src/**/*.ts").scanSync(ROOT)].map((file) => ({
  file,
  text: readFileSync(join(ROOT, file), "utf8"),
}));

/** What the calls of a function in the source have as their argument. */
const argumentsOf = (name: string) =>
  SOURCES.flatMap(({ text }) => [...text.matchAll(RegExp(`\\b${name}\\("([^"]+)"\\)`, "g"))]).map(
    ([, path]) => path!,
  );

describe("a compiled program has all that it reads of itself", () => {
  test("no other file asks where it lies", () => {
    const asking = SOURCES.filter(({ text }) => /import\.meta\.(?:url|dir|path|file)|__dirname/.test(text));
    expect(asking.map(({ file }) => file)).toEqual(["src/base/program-file.ts"]);
    expect(isCompiled).toBe(false);
    expect(programFile("package.json")).toBe(join(ROOT, "package.json"));
  });

  test("every Worker's script is one, and is started by its name", () => {
    expect(new Set(argumentsOf("workerScript"))).toEqual(new Set(WORKERS));
  });

  test("every file and folder is there, and goes into it", () => {
    const read = argumentsOf("programFile");
    expect(read.length).toBeGreaterThan(2);
    expect(new Set(read)).toEqual(new Set(ASSETS));
    for (const path of read) expect(existsSync(join(ROOT, path))).toBe(true);
  });
});
