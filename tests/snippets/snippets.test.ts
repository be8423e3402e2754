import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { chmodSync, cpSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import manifest from "../../package.json";
import { MODEL, serve } from "../cli/support.ts";
import { writeGgufModel } from "../gguf-model.ts";
import { temporaryFolder } from "../support.ts";
import { type Block, blocksOf, DOCUMENTS, ROOT, runnable } from "./blocks.ts";

setDefaultTimeout(300_000);

const BLOCKS = blocksOf(DOCUMENTS);

/** An API key that documents read from a file. */
const KEY = "a-key";

/** A chat template that shows tools, and a form of calls; the embedded model's own has none. */
const TOOLS = `{% if tools %}{{ tools | tojson }} Write: <tool_call>{"name": …}</tool_call>
{% endif %}{% for message in messages %}{{ message.content }}
{% endfor %}`;

let folder: ReturnType<typeof temporaryFolder>;
let server: Awaited<ReturnType<typeof serve>>;
/** Of the server. */
let host: string;
beforeAll(async () => {
  folder = temporaryFolder();
  for (const path of [
    "bin",
    "home/.config/fish/completions",
    "home/.ollama/models/blobs",
    "work/folder",
    "work/node_modules",
  ])
    mkdirSync(folder.file(path), { recursive: true });
  for (const entry of readdirSync(join(ROOT, "node_modules")))
    if (!entry.startsWith(".") && entry !== "octavo")
      symlinkSync(join(ROOT, "node_modules", entry), folder.file(`work/node_modules/${entry}`));
  symlinkSync(ROOT, folder.file("work/node_modules/octavo"));
  for (const entry of ["src", "examples", "bench", "package.json"])
    symlinkSync(join(ROOT, entry), folder.file(`work/${entry}`));
  script("octavo", `exec "${process.execPath}" "${join(import.meta.dir, "octavo.ts")}" "$@"`);
  // In a clone the program is called by its source.
  script("bun", `[ "$1" = src/cli/main.ts ] && shift && exec octavo "$@"\nexec "${process.execPath}" "$@"`);
  writeFileSync(folder.file("home/.curlrc"), "fail\nsilent\nshow-error\n");
  writeFileSync(folder.file("home/octavo-key"), KEY);
  const file = folder.file("work/Qwen3-8B-Q4_K_M.gguf");
  writeGgufModel(MODEL, file);
  for (const path of ["work/folder/model.gguf", "home/.ollama/models/blobs/sha256-1"])
    cpSync(file, folder.file(path));
  const template = folder.file("tools.jinja");
  writeFileSync(template, TOOLS);
  server = await serve(["tiny-stories", "--chat-template", template]);
  host = new URL(server.url).host;
});
afterAll(() => {
  server[Symbol.dispose]();
  folder[Symbol.dispose]();
});

function script(name: string, code: string): void {
  writeFileSync(folder.file(`bin/${name}`), `#!/bin/sh\n${code}\n`);
  chmodSync(folder.file(`bin/${name}`), 0o755);
}

interface Ended {
  readonly code: number;
  /** What it wrote; where it failed, why, too. */
  readonly output: string;
}

/** Starts a command in a folder that has what documents expect, as a user who has Octavo. */
function start(...command: readonly string[]) {
  return Bun.spawn([...command], {
    cwd: folder.file("work"),
    env: {
      PATH: `${folder.file("bin")}:${process.env["PATH"]}`,
      HOME: folder.file("home"),
      CUDA_VISIBLE_DEVICES: "",
    },
    ...{ stdin: "ignore", stdout: "pipe", stderr: "pipe" },
  });
}

async function ended(child: ReturnType<typeof start>): Promise<Ended> {
  const [stdout, stderr] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
  ]);
  const code = await child.exited;
  return { code, output: code === 0 ? stdout : `${stdout}${stderr}` };
}

function run(block: Block): Promise<Ended> {
  const code = runnable(block, host);
  const file = folder.file(`work/snippet.${block.language}`);
  writeFileSync(file, block.language === "ts" ? `${code}\nexport {};\n` : code);
  return ended(block.language === "ts" ? start("bun", file) : start("bash", "-euo", "pipefail", file));
}

describe("code in documents", () => {
  for (const block of BLOCKS) {
    const [rule] = block.rules;
    const title = `${block.document}, line ${block.line}`;
    if (rule?.skip !== undefined) test.skip(`${title} (skipped: ${rule.skip})`, () => {});
    else if (rule?.quotes !== undefined)
      test(`${title} stands in ${rule.quotes}`, () => {
        const plain = (text: string) => text.replaceAll(/\s+/g, " ").trim();
        expect(plain(readFileSync(join(ROOT, rule.quotes!), "utf8"))).toContain(plain(block.code));
      });
    else
      test(`${title} runs`, async () => {
        expect(await run(block)).toEqual({ code: 0, output: expect.any(String) });
      });
  }

  test("calls scripts that the package has", () => {
    const scripts = DOCUMENTS.flatMap((document) => [
      ...readFileSync(join(ROOT, document), "utf8").matchAll(/\bbun run ((?!-)[\w:]+)(?![\w/.:])/g),
    ]).map(([, name]) => name!);
    expect(scripts.length).toBeGreaterThan(5);
    for (const name of new Set(scripts)) expect(manifest.scripts).toHaveProperty([name]);
  });
});
