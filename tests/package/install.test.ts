import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import manifest from "../../package.json";
import { temporaryFolder } from "../support.ts";
import { Registry } from "./registry.ts";

setDefaultTimeout(300_000);

const ROOT = join(import.meta.dir, "../..");

let folder: ReturnType<typeof temporaryFolder>;
let registry: Registry;
/** An empty project of somebody's who has nothing else. */
let project: string;
beforeAll(async () => {
  folder = temporaryFolder();
  for (const name of ["home", "project", "scratch"]) mkdirSync(folder.file(name));
  project = folder.file("project");
  registry = new Registry(join(ROOT, "node_modules"), folder.file("scratch"));
  // What the installed program needs is the same with and without the declarations of types, which take long to make.
  const packed = await run(
    ROOT,
    "bun",
    "pm",
    "pack",
    "--ignore-scripts",
    "--quiet",
    "--destination",
    project,
  );
  expect(packed).toMatchObject({ code: 0, output: expect.stringContaining(".tgz") });
});
afterAll(() => {
  registry[Symbol.dispose]();
  folder[Symbol.dispose]();
});

async function run(cwd: string, ...command: readonly string[]) {
  const child = Bun.spawn([...command], {
    cwd,
    env: { PATH: process.env["PATH"]!, HOME: folder.file("home"), npm_config_registry: registry.url },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  const output = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  return { code: await child.exited, output: output.join("") };
}

describe("bun add ./octavo-*.tgz in an empty folder", () => {
  test("brings the package and what it depends on, and nothing that it is developed with", async () => {
    const [tarball] = readdirSync(project);
    const added = await run(project, "bun", "add", `./${tarball}`);
    expect(added).toMatchObject({ code: 0, output: expect.stringContaining("installed octavo@") });
    const modules = readdirSync(join(project, "node_modules"));
    for (const name of Object.keys(manifest.dependencies)) expect(modules).toContain(name.split("/")[0]!);
    for (const name of ["typescript", "ai", "openai", "fast-check"]) expect(modules).not.toContain(name);
  });

  test("then code with it runs", async () => {
    const code = `import { LLM } from "octavo";
import { startServer } from "octavo/server";
await using llm = await LLM.create();
const [output] = await llm.generate(["Once upon a time"], { temperature: 0, maxTokens: 4 });
console.log(output?.outputs[0]?.text, typeof startServer);`;
    writeFileSync(join(project, "main.ts"), code);
    expect(await run(project, "bun", "main.ts")).toEqual({ code: 0, output: ", there was a function\n" });
  });

  test("and so does the program", async () => {
    const octavo = join(project, "node_modules/.bin/octavo");
    expect(await run(project, octavo, "--version")).toEqual({ code: 0, output: `${manifest.version}\n` });
    const args = ["complete", "tiny-stories", "Once upon a time", "--temperature", "0", "--max-tokens", "4"];
    expect(await run(project, octavo, ...args)).toEqual({ code: 0, output: ", there was a\n" });
  });

  test.skipIf(Bun.which("node") === null)(
    "Node.js is told that it takes Bun, where there is one",
    async () => {
      for (const entry of Object.keys(manifest.exports)) {
        const name = entry.replace(".", "octavo");
        const { code, output } = await run(
          project,
          "node",
          "--input-type=module",
          "-e",
          `import ${JSON.stringify(name)}`,
        );
        expect([code, output]).toEqual([
          1,
          expect.stringMatching(/Error: octavo runs on Bun.*https:\/\/bun\.sh/),
        ]);
      }
    },
  );
});

test("every entry has types, code for Bun, and a word for others", () => {
  for (const conditions of Object.values(manifest.exports)) {
    expect(Object.keys(conditions)).toEqual(["types", "bun", "node", "browser", "default"]);
    expect(readFileSync(join(ROOT, conditions.node), "utf8")).toContain("runs on Bun");
    expect(conditions.default).toBe(conditions.bun);
  }
});
