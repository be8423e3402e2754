import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { cpSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import manifest from "../../package.json";
import { eventually, temporaryFolder } from "../support.ts";

setDefaultTimeout(300_000);

const ROOT = join(import.meta.dir, "../..");
const MODULES = join(ROOT, "node_modules");
const README = readFileSync(join(ROOT, "README.md"), "utf8");

/** The `tsconfig.json` that `bun init` writes. */
const BUN_INIT = {
  ...{ lib: ["ESNext"], target: "ESNext", module: "Preserve", moduleDetection: "force", jsx: "react-jsx" },
  ...{ allowJs: true, types: ["bun"], moduleResolution: "bundler", allowImportingTsExtensions: true },
  ...{ verbatimModuleSyntax: true, noEmit: true, strict: true, skipLibCheck: true },
  ...{ noFallthroughCasesInSwitch: true, noUncheckedIndexedAccess: true, noImplicitOverride: true },
};
const STRICT = {
  ...BUN_INIT,
  ...{ lib: ["ESNext", "DOM"], noPropertyAccessFromIndexSignature: true, exactOptionalPropertyTypes: true },
  ...{ noUnusedLocals: true, noUnusedParameters: true, noImplicitReturns: true },
};
/** A project that compiles to JavaScript, and so may not import `.ts` files. */
const EMITTING = {
  ...{ target: "ESNext", module: "ESNext", moduleResolution: "bundler", types: ["bun"], strict: true },
  ...{ outDir: "out", noUncheckedIndexedAccess: true },
};

let folder: ReturnType<typeof temporaryFolder>;
/** What a clone has of the package before anything is built in it. */
let clone: string;
beforeAll(() => {
  folder = temporaryFolder();
  clone = folder.file("clone");
  mkdirSync(clone);
  const built = ["package.json", "tsconfig.json", "tsconfig.build.json"];
  for (const name of [...manifest.files, ...built])
    if (name !== "dist/types") cpSync(join(ROOT, name), join(clone, name), { recursive: true });
  symlinkSync(MODULES, join(clone, "node_modules"));
});
afterAll(() => folder[Symbol.dispose]());

interface Ended {
  readonly code: number;
  readonly output: string;
}

/** TypeScript's compiler is written in Go, and collects garbage for a third of its time unless it may keep more. */
const ROOMY = { GOGC: "1500" };

function run(cwd: string, ...command: readonly string[]): Ended {
  const { exitCode, stdout, stderr } = Bun.spawnSync([...command], {
    cwd,
    env: { ...process.env, ...ROOMY, CUDA_VISIBLE_DEVICES: "" },
  });
  return { code: exitCode, output: `${stdout}${stderr}` };
}

/** A project whose dependencies are those of this repository, and that has the README's and the examples' code. */
function project(name: string, addOctavo: (modules: string) => void): string {
  const path = folder.file(name);
  const modules = join(path, "node_modules");
  mkdirSync(modules, { recursive: true });
  for (const entry of readdirSync(MODULES))
    if (!entry.startsWith(".") && entry !== "octavo") symlinkSync(join(MODULES, entry), join(modules, entry));
  addOctavo(modules);
  writeFileSync(join(path, "package.json"), JSON.stringify({ name, type: "module" }));
  const snippets = [...README.matchAll(/```ts\n(.*?)```/gs)].map(([, code]) => code!);
  expect(snippets.length).toBeGreaterThan(0);
  for (const [i, code] of snippets.entries()) writeFileSync(join(path, `readme-${i}.ts`), code);
  cpSync(join(ROOT, "examples"), join(path, "examples"), { recursive: true });
  return path;
}

/** Examples with packages whose own declarations do not pass where libraries are checked. */
const WITH_CLIENTS = ["examples/ai-sdk.ts", "examples/clients.ts"];

/** Where libraries are checked, the code is that which imports no other package's clients. */
function typecheck(path: string, compilerOptions: Readonly<Record<string, unknown>>): Ended {
  const config = { compilerOptions, ...(!compilerOptions["skipLibCheck"] && { exclude: WITH_CLIENTS }) };
  writeFileSync(join(path, "tsconfig.json"), JSON.stringify(config));
  // Several threads would each look at what all of them need.
  return run(path, "bun", join(MODULES, "typescript/bin/tsc"), "-p", path, "--singleThreaded");
}

const CLEAN: Ended = { code: 0, output: "" };

describe("installed from its tarball", () => {
  let path: string;
  beforeAll(() => {
    const packed = run(clone, "bun", "pm", "pack", "--quiet", "--destination", folder.path);
    const tarball = packed.output.match(/\S+\.tgz/)?.[0];
    if (packed.code !== 0 || tarball === undefined) throw new Error(packed.output);
    path = project("installed", (modules) => {
      mkdirSync(join(modules, "octavo"));
      const untar = run(
        modules,
        "tar",
        "xzf",
        join(folder.path, tarball.split("/").at(-1)!),
        "--strip-components=1",
        "-C",
        "octavo",
      );
      expect(untar).toEqual(CLEAN);
    });
  });

  test("the README's and the examples' code has types", () => {
    expect(typecheck(path, BUN_INIT)).toEqual(CLEAN);
  });

  test("under the strictest options, libraries checked too", () => {
    expect(typecheck(path, { ...STRICT, skipLibCheck: false })).toEqual(CLEAN);
  });

  test("in a project that compiles", () => {
    expect(typecheck(path, EMITTING)).toEqual(CLEAN);
  });

  test("a mistake is one", () => {
    writeFileSync(
      join(path, "mistake.ts"),
      'import { LLM } from "octavo";\nawait LLM.create(1);\nexport {};\n',
    );
    const { code, output } = typecheck(path, { ...BUN_INIT });
    expect([code, output]).toEqual([
      expect.any(Number),
      expect.stringContaining("mistake.ts(2,18): error TS2345"),
    ]);
    expect(code).not.toBe(0);
  });

  test("it generates text, and its program runs", () => {
    const code = [
      'import { LLM } from "octavo";',
      'import { createApp } from "octavo/server";',
      "await using llm = await LLM.create();",
      'const [output] = await llm.generate(["Once upon a time"], { temperature: 0, maxTokens: 4 });',
      "console.log(output?.outputs[0]?.text, typeof createApp);",
    ];
    writeFileSync(join(path, "main.ts"), code.join("\n"));
    expect(run(path, "bun", "main.ts")).toEqual({ code: 0, output: ", there was a function\n" });
    const bin = join(path, "node_modules/octavo", manifest.bin.octavo);
    expect(run(path, "bun", bin, "--version")).toEqual({ code: 0, output: `${manifest.version}\n` });
  });
});

describe("the examples run", () => {
  let path: string;
  let toolModel: string;
  beforeAll(() => {
    path = project("examples-run", (modules) => symlinkSync(clone, join(modules, "octavo")));
    // The embedded model with a template that shows it tools.
    toolModel = join(path, "model");
    cpSync(join(ROOT, "models/tiny-stories"), toolModel, { recursive: true });
    const file = join(toolModel, "tokenizer_config.json");
    const config = JSON.parse(readFileSync(file, "utf8")) as object;
    const template = readFileSync(
      join(ROOT, "tests/unit/tokenizer/fixtures/templates/qwen2_5.jinja"),
      "utf8",
    );
    writeFileSync(file, JSON.stringify({ ...config, chat_template: template }));
  });

  const SMALL = [
    ["generate", /Once upon a time/],
    ["stream", /happy|\.\n$/],
    ["chat", /\w+ \w+/],
    ["async", /\(\d+ tokens, then "\w+"\)/],
    ["logprobs", /rank +\d+ +"cat"|rank/],
  ] as const;
  const WITH_OTHERS = ["ai-sdk", "clients", "serve"];

  test("all of them", () => {
    const scripts = readdirSync(join(ROOT, "examples")).filter((name) => name.endsWith(".ts"));
    const run = [...SMALL.map(([name]) => name), ...WITH_OTHERS].map((name) => `${name}.ts`);
    expect(scripts.sort()).toEqual(run.sort());
  });

  test.each(SMALL)("%s.ts", (name, expected) => {
    const { code, output } = run(path, "bun", `examples/${name}.ts`);
    expect([code, output]).toEqual([0, expect.stringMatching(expected)]);
  });

  test("ai-sdk.ts", () => {
    const { code, output } = run(path, "bun", "examples/ai-sdk.ts", toolModel);
    expect([code, output]).toEqual([
      0,
      expect.stringMatching(/\(\d steps\).*river: "(Seine|Thames|Tiber)".*256 numbers/s),
    ]);
  });

  test("clients.ts against serve.ts, which ends in order", async () => {
    const env = { ...process.env, PORT: "0", CUDA_VISIBLE_DEVICES: "" };
    const server = Bun.spawn(["bun", "examples/serve.ts"], { cwd: path, env, stdout: "pipe" });
    const [line] = await server.stdout
      .getReader()
      .read()
      .then(({ value }) => new TextDecoder().decode(value).split("\n"));
    const url = line!.match(/http:\S+(?=v1$)/)![0];
    expect(await (await fetch(`${url}story`)).text()).toStartWith("Once upon a time");
    const clients = Bun.spawn(["bun", "examples/clients.ts", url.slice(0, -1)], {
      cwd: path,
      env,
      stdout: "pipe",
    });
    const output = await new Response(clients.stdout).text();
    expect([await clients.exited, output]).toEqual([
      0,
      expect.stringMatching(
        /openai: \S.*2 vectors of 256 numbers.*AI SDK: \S.*Anthropic: \S.*\((end_turn|max_tokens)\)/s,
      ),
    ]);
    server.kill("SIGINT");
    expect(await server.exited).toBe(0);
  });
});

describe("added as a folder, where nothing was built", () => {
  let path: string;
  beforeAll(() => {
    path = project("linked", (modules) => {
      const source = folder.file("source");
      cpSync(clone, source, { recursive: true, filter: (file) => !file.startsWith(join(clone, "dist")) });
      symlinkSync(source, join(modules, "octavo"));
    });
  });

  test.each([
    ["as bun init writes them", BUN_INIT],
    ["that are strict", STRICT],
  ])("the code has types, with options %s", (_, options) => {
    expect(typecheck(path, options)).toEqual(CLEAN);
  });
});

test("the README's serving command works in a clone, with an empty home, and Ctrl-C ends it in order", async () => {
  const [, line] = README.match(/## Serving\s+```sh\n(.*?) *#/)!;
  const command = line!.replace("Qwen/Qwen3-0.6B", "").replace(/--port \d+/, "--port 0");
  const home = folder.file("home");
  mkdirSync(home);
  let output = "";
  const child = Bun.spawn(command.split(/ +/), {
    cwd: clone,
    env: { PATH: process.env["PATH"]!, HOME: home, CUDA_VISIBLE_DEVICES: "" },
    terminal: {
      data: (_, bytes) => {
        output += new TextDecoder().decode(bytes);
      },
    },
  });
  await eventually(() => /serves tiny-stories at http:\S+/.test(output) || child.exitCode !== null);
  const [, url] = output.match(/serves tiny-stories at (http:\S+)/) ?? [];
  expect(url).toBeDefined();
  expect((await fetch(`${url}health`)).status).toBe(200);
  const reply = await fetch(`${url}v1/completions`, {
    ...{ method: "POST", headers: { "Content-Type": "application/json" } },
    body: JSON.stringify({ prompt: "Once", max_tokens: 300, ignore_eos: true, stream: true }),
  });
  child.terminal!.write("\x03");
  expect(await reply.text()).toEndWith("data: [DONE]\n\n");
  expect(await child.exited).toBe(0);
});
