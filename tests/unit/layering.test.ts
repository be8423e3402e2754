import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { Glob } from "bun";

setDefaultTimeout(300_000);

const SRC = join(import.meta.dir, "../../src");
const ARCHITECTURE = join(import.meta.dir, "../../docs/architecture.md");

interface Room {
  /** What it knows, for the table in docs/architecture.md. */
  readonly knows: string;
  /** The rooms it may import, besides itself and base. */
  readonly imports: readonly string[];
}

/** The rooms of src/, lowest first. The table in docs/architecture.md is made of this. */
const ROOMS: Readonly<Record<string, Room>> = {
  base: { knows: "errors, options, sampling parameters, dtypes, outputs", imports: [] },
  cuda: {
    knows:
      "driver, NVRTC, cuBLASLt and NCCL through `bun:ffi`: where they lie, handles, streams, graphs, errors",
    imports: [],
  },
  gguf: {
    knows: "GGUF files: header and metadata, names of tensors, block types and what they stand for",
    imports: [],
  },
  tokenizer: {
    knows: "text ↔ token ids: tokenizer, chat template, prompt encoder, incremental detokenizer",
    imports: ["gguf"],
  },
  backend: {
    knows: "the `Backend` interface: every op, its shapes and checks; tensors, scratch memory",
    imports: [],
  },
  ranks: {
    knows: "memory that the ranks of a model share: common fate, exchanges, the ring of steps",
    imports: [],
  },
  "backend/cpu": {
    knows: "the reference backend: plain TypeScript, float32",
    imports: ["backend", "ranks"],
  },
  "backend/simd": {
    knows:
      "the CPU backend: memory that threads share, WebAssembly and assembled kernels, and the reference for the rest",
    imports: ["backend", "backend/cpu"],
  },
  "backend/cuda": {
    knows: "the GPU backend: kernels, matrix products, captured steps",
    imports: ["backend", "cuda"],
  },
  layers: {
    knows: "linear, norm, rotary, attention, feed-forward: what models are composed of",
    imports: ["backend"],
  },
  models: {
    knows: "config.json → `ModelConfig`; one short file a family",
    imports: ["backend", "gguf", "layers"],
  },
  loader: {
    knows: "safetensors, sharded checkpoints, weight plans, hub downloads",
    imports: ["backend", "gguf"],
  },
  threads: { knows: "Workers as typed links, errors as messages", imports: ["cuda"] },
  grammar: {
    knows: "JSON Schema, regular expressions and choices → EBNF; masks of what it allows, from a Worker",
    imports: ["threads", "tokenizer"],
  },
  formats: {
    knows:
      "the forms in which models think and call tools: a reply's text → what is said, thought and called",
    imports: ["grammar", "tokenizer"],
  },
  "runner/types.ts": { knows: "the seam between policy and mechanism: plain data", imports: [] },
  runner: {
    knows: "a scheduled batch → device state → model → drawn tokens",
    imports: ["runner/types.ts", "backend", "models", "ranks"],
  },
  engine: {
    knows:
      "sequences, KV blocks, scheduling, stop conditions. No tensors, no clock, no randomness of its own",
    imports: ["runner/types.ts"],
  },
  llm: {
    knows: "the public `LLM`, in the caller's thread; the composition root; request building; the step loop",
    imports: [
      ...["backend", "backend/cpu", "backend/simd", "backend/cuda", "cuda", "engine", "layers"],
      ...[
        "formats",
        "grammar",
        "loader",
        "models",
        "ranks",
        "runner",
        "runner/types.ts",
        "threads",
        "tokenizer",
      ],
    ],
  },
  async: {
    knows:
      "the public `AsyncLLM`: engine worker, text workers, and the messages between them and the main thread",
    imports: ["engine", "grammar", "llm", "models", "threads", "tokenizer"],
  },
  chat: {
    knows: "a model's turns: how they are planned, read and held to tools and forms, over any transport",
    imports: ["async", "formats", "tokenizer"],
  },
  server: {
    knows: "OpenAI's HTTP API over an `AsyncLLM`: schemas, admission, replies, metrics, log",
    imports: ["async", "chat", "formats", "threads", "tokenizer"],
  },
  ai: {
    knows: "the AI SDK's language and embedding models over an `AsyncLLM`, in its process",
    imports: ["async", "chat", "formats", "tokenizer"],
  },
  "ai.ts": { knows: "the surface of `octavo/ai`", imports: ["ai", "async"] },
  page: {
    knows: "the page, in the browser: chat, the engine live, metrics",
    imports: [],
  },
  cli: {
    knows: "commands, flags, settings, progress bars, exit codes",
    imports: ["async", "backend/simd", "cuda", "formats", "llm", "loader", "server", "tokenizer"],
  },
  "index.ts": { knows: "the public surface", imports: ["async", "llm", "tokenizer"] },
};

/** The longest room that a file belongs to. */
function roomOf(path: string): string | undefined {
  const rooms = Object.keys(ROOMS).filter((room) => path === room || path.startsWith(`${room}/`));
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

/** A path that returns to where it began; undefined when there is none. */
function findCircle(
  nodes: readonly string[],
  next: (node: string) => readonly string[],
): string[] | undefined {
  const done = new Set<string>();
  const visit = (node: string, path: readonly string[]): string[] | undefined => {
    if (path.includes(node)) return [...path.slice(path.indexOf(node)), node];
    if (done.has(node)) return undefined;
    for (const target of next(node)) {
      const circle = visit(target, [...path, node]);
      if (circle) return circle;
    }
    done.add(node);
    return undefined;
  };
  for (const node of nodes) {
    const circle = visit(node, []);
    if (circle) return circle;
  }
  return undefined;
}

/** The table of rooms in Markdown, columns aligned. */
function roomTable(): string {
  const code = (name: string) => `\`${name}${name.endsWith(".ts") ? "" : "/"}\``;
  const rows = Object.entries(ROOMS).map(([room, { knows, imports }]) => [
    code(room),
    knows,
    imports.length === 0 ? "nothing" : imports.map(code).join(", "),
  ]);
  const table = [["room", "what it knows", "imports"], ...rows];
  const widths = [0, 1, 2].map((i) => Math.max(...table.map((row) => row[i]!.length)));
  const line = (row: readonly string[]) => `| ${row.map((cell, i) => cell.padEnd(widths[i]!)).join(" | ")} |`;
  const rule = `| ${widths.map((width) => "-".repeat(width)).join(" | ")} |`;
  return [line(table[0]!), rule, ...table.slice(1).map(line)].join("\n");
}

const files = [...new Glob("**/*.{ts,tsx}").scanSync(SRC)].sort();

describe("layering", () => {
  test("every file belongs to a room", () => {
    expect(files.length).toBeGreaterThan(40);
    expect(files.filter((file) => roomOf(file) === undefined)).toEqual([]);
  });

  test("imports go down only", () => {
    const upward = files.flatMap((file) => {
      const room = roomOf(file)!;
      const allowed = new Set(["base", room, ...ROOMS[room]!.imports]);
      return importsOf(file)
        .filter((target) => !allowed.has(roomOf(target)!))
        .map((target) => `${file} imports ${target}`);
    });
    expect(upward).toEqual([]);
  });

  test("no room may import what it does not", () => {
    const unused = Object.entries(ROOMS).flatMap(([room, { imports }]) => {
      const used = new Set(
        files.filter((file) => roomOf(file) === room).flatMap((file) => importsOf(file).map(roomOf)),
      );
      return imports.filter((target) => !used.has(target)).map((target) => `${room} → ${target}`);
    });
    expect(unused).toEqual([]);
  });

  test("neither rooms nor files form a circle", () => {
    expect(findCircle(Object.keys(ROOMS), (room) => ROOMS[room]!.imports)).toBeUndefined();
    expect(findCircle(files, importsOf)).toBeUndefined();
    expect(findCircle(["a", "b", "c"], (node) => ({ a: ["b"], b: ["c"], c: ["b"] })[node]!)).toEqual([
      "b",
      "c",
      "b",
    ]);
  });

  test("the table in docs/architecture.md is that of this test", () => {
    const page = readFileSync(ARCHITECTURE, "utf8");
    const table = /^\| room .*\n(?:\|.*\n)+/m;
    const expected = page.replace(table, `${roomTable()}\n`);
    if (process.env["OCTAVO_UPDATE_DOCS"] === "1") writeFileSync(ARCHITECTURE, expected);
    else expect(page).toBe(expected);
  });

  test("no file is more than one noun's worth", () => {
    const long = files.filter((file) => readFileSync(join(SRC, file), "utf8").split("\n").length > 450);
    expect(long).toEqual([]);
  });
});
