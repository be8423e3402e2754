import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { Glob } from "bun";

const SRC = join(import.meta.dir, "../../src");

/** The rooms of src/ and the rooms each may import, besides itself and base. Files at the top of src/ are rooms too. */
const ALLOWED: Readonly<Record<string, readonly string[]>> = {
  base: [],
  cuda: [],
  tokenizer: [],
  "backend/cpu": ["backend"],
  "backend/cuda": ["backend", "cuda"],
  backend: [],
  layers: ["backend"],
  models: ["backend", "layers"],
  loader: ["backend"],
  "runner/types.ts": [],
  runner: ["runner/types.ts", "backend", "layers", "models"],
  engine: ["runner/types.ts"],
  "prompt-encoder.ts": ["backend", "tokenizer"],
  "request-builder.ts": ["engine", "prompt-encoder.ts"],
  "request-queue.ts": ["engine"],
  "load-text.ts": ["tokenizer"],
  "load-model.ts": [
    ...["backend", "backend/cpu", "backend/cuda", "cuda", "engine", "layers"],
    ...["load-text.ts", "loader", "models", "runner", "tokenizer"],
  ],
  "llm.ts": [
    ...["engine", "load-model.ts", "models", "prompt-encoder.ts", "request-builder.ts"],
    ...["request-queue.ts", "tokenizer"],
  ],
  async: [
    ...["cuda", "engine", "llm.ts", "load-model.ts", "load-text.ts", "models", "prompt-encoder.ts"],
    "request-builder.ts",
  ],
  "async-llm.ts": ["async", "prompt-encoder.ts"],
  "index.ts": ["async-llm.ts", "llm.ts", "load-model.ts", "prompt-encoder.ts", "tokenizer"],
  cli: ["async-llm.ts", "backend/cuda", "cuda", "llm.ts", "load-model.ts", "loader", "server"],
  server: ["async-llm.ts", "prompt-encoder.ts", "tokenizer"],
};

/** The longest room that a file belongs to. */
function roomOf(path: string): string | undefined {
  const rooms = Object.keys(ALLOWED).filter((room) => path === room || path.startsWith(`${room}/`));
  return rooms.sort((a, b) => b.length - a.length)[0];
}

/** Files under src/ that a file imports, types included. */
function importsOf(file: string): string[] {
  const source = readFileSync(join(SRC, file), "utf8");
  const specifiers = [...source.matchAll(/(?:from|import)\s*\(?\s*"(\.{1,2}\/[^"]+)"/g)].map(
    (match) => match[1]!,
  );
  return specifiers
    .map((specifier) => relative(SRC, join(SRC, dirname(file), specifier)))
    .filter((path) => !path.startsWith(".."));
}

const files = [...new Glob("**/*.ts").scanSync(SRC)].sort();

describe("layering", () => {
  test("every file belongs to a room", () => {
    expect(files.length).toBeGreaterThan(40);
    expect(files.filter((file) => roomOf(file) === undefined)).toEqual([]);
  });

  test("imports go down only", () => {
    const upward = files.flatMap((file) => {
      const room = roomOf(file)!;
      const allowed = new Set(["base", room, ...ALLOWED[room]!]);
      return importsOf(file)
        .filter((target) => !allowed.has(roomOf(target)!))
        .map((target) => `${file} imports ${target}`);
    });
    expect(upward).toEqual([]);
  });

  test("the rooms form no cycle", () => {
    const visit = (room: string, path: readonly string[]): void => {
      expect(path).not.toContain(room);
      for (const next of ALLOWED[room]!) visit(next, [...path, room]);
    };
    for (const room of Object.keys(ALLOWED)) visit(room, []);
  });

  test("no file is more than one noun's worth", () => {
    const long = files.filter((file) => readFileSync(join(SRC, file), "utf8").split("\n").length > 450);
    expect(long).toEqual([]);
  });
});
