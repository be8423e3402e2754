import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { chmodSync, chownSync, mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { buildBinary } from "../../.ci/binary.ts";
import { version } from "../../package.json";
import { temporaryFolder } from "../support.ts";

setDefaultTimeout(300_000);

let folder: ReturnType<typeof temporaryFolder>;
let home: string;
let work: string;
beforeAll(async () => {
  folder = temporaryFolder();
  [home, work] = [folder.file("home"), folder.file("work")];
  for (const path of [home, work]) mkdirSync(path);
  await buildBinary(folder.file("octavo"));
  expect(readdirSync(folder.path).sort()).toEqual(["home", "octavo", "work"]);
});
afterAll(() => folder[Symbol.dispose]());

/** Starts the program in an empty folder, with nothing in its environment but an empty home. */
function start(args: readonly string[], env: Readonly<Record<string, string>> = {}) {
  const options = { cwd: work, env: { HOME: home, ...env } };
  return Bun.spawn([folder.file("octavo"), ...args], {
    ...options,
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
}

async function run(args: readonly string[], env?: Readonly<Record<string, string>>) {
  const child = start(args, env);
  const [stdout, stderr] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
  ]);
  return { code: await child.exited, stdout, stderr };
}

const STORY = ["generate", "Once upon a time", "--temperature", "0", "--max-tokens", "4"];

describe("the program of one file, on a machine that has nothing else", () => {
  test("says its version", async () => {
    expect(await run(["--version"])).toEqual({ code: 0, stdout: `${version}\n`, stderr: "" });
  });

  test("writes text with the model inside of it, which it unpacks into its cache", async () => {
    for (let i = 0; i < 2; i++) {
      const { code, stdout } = await run(STORY);
      expect([code, stdout]).toEqual([0, "Once upon a time, there was a\n"]);
    }
    expect(readdirSync(join(home, ".cache/octavo/models"))).toHaveLength(1);
    expect(readdirSync(work)).toEqual([]);
  });

  test("without a home, in the folder of temporary files", async () => {
    const TMPDIR = folder.file("tmp");
    mkdirSync(TMPDIR);
    const { code, stdout } = await run(STORY, { HOME: "/dev/null", TMPDIR });
    expect([code, stdout]).toEqual([0, "Once upon a time, there was a\n"]);
    expect(readdirSync(TMPDIR)).toEqual([`octavo-${process.getuid!()}`]);
  });

  test.skipIf(process.getuid!() !== 0 || Bun.which("setpriv") === null)(
    "by a user without a name or a home, as in containers",
    async () => {
      chmodSync(folder.path, 0o755);
      const OCTAVO_CACHE_DIR = folder.file("cache");
      mkdirSync(OCTAVO_CACHE_DIR);
      chownSync(OCTAVO_CACHE_DIR, 65532, 65532);
      const as = ["setpriv", "--reuid=65532", "--regid=65532", "--clear-groups", folder.file("octavo")];
      const child = Bun.spawn([...as, ...STORY], { cwd: "/", env: { OCTAVO_CACHE_DIR }, stderr: "pipe" });
      expect(await new Response(child.stderr).text()).toContain("4 tokens");
      expect(await child.exited).toBe(0);
    },
  );

  test("takes no settings and no code from the folder that it runs in", async () => {
    const place = folder.file("place");
    mkdirSync(place);
    writeFileSync(join(place, ".env"), "OCTAVO_MAX_TOKENS=1\n");
    writeFileSync(join(place, "bunfig.toml"), 'preload = ["./evil.ts"]\n');
    writeFileSync(join(place, "evil.ts"), 'console.log("evil");\n');
    const child = Bun.spawn([folder.file("octavo"), ...STORY], {
      cwd: place,
      env: { HOME: home },
      stderr: "ignore",
    });
    expect(await new Response(child.stdout).text()).toBe("Once upon a time, there was a\n");
  });

  test("several threads and ranks compute, each a Worker", async () => {
    const { code, stdout } = await run([
      ...STORY,
      "--tensor-parallel-size",
      "2",
      "--device",
      "cpu",
      "--threads",
      "2",
    ]);
    expect([code, stdout]).toEqual([0, "Once upon a time, there was a\n"]);
  });

  test("errors keep their kind on the way out of a Worker", async () => {
    const model = folder.file("model");
    mkdirSync(model);
    writeFileSync(join(model, "config.json"), "{");
    const broken = await run(["serve", model]);
    expect([broken.code, broken.stderr]).toEqual([
      65,
      expect.stringMatching(/^octavo: .*config\.json: .*JSON[^\n]*\n$/),
    ]);
    expect((await run(["serve", "./missing"])).code).toBe(66);
  });

  test("serves: chats, grammars, large bodies, metrics; and ends in order", async () => {
    const child = start(["serve", "--port", "0"]);
    const reader = child.stdout.getReader();
    let banner = "";
    while (!banner.includes(" at http://")) {
      const { done, value } = await reader.read();
      if (done) throw new Error(await new Response(child.stderr).text());
      banner += new TextDecoder().decode(value);
    }
    const url = banner.match(/at (http:\S+)/)![1]!;
    const ask = async (path: string, body: object): Promise<string> => {
      const headers = { "Content-Type": "application/json" };
      const reply = await fetch(`${url}v1/${path}`, { method: "POST", headers, body: JSON.stringify(body) });
      return reply.text();
    };
    const messages = [{ role: "user", content: "Hi" }];
    expect(await ask("chat/completions", { messages, max_tokens: 3, stream: true })).toEndWith(
      "data: [DONE]\n\n",
    );
    const constrained = { prompt: "Once", structured_outputs: { regex: "[a-c]{3}" } };
    expect(JSON.parse(await ask("completions", constrained)).choices[0].text).toMatch(/^[a-c]{3}$/);
    const large = { prompt: "Once", max_tokens: 1, user: "u".repeat(300_000) };
    expect(JSON.parse(await ask("completions", large)).usage.completion_tokens).toBe(1);
    expect(await (await fetch(`${url}metrics`)).text()).toContain("vllm:num_requests_running");
    const page = await (await fetch(url, { headers: { Accept: "text/html" } })).text();
    const parts = [...page.matchAll(/(?:src|href)="([^"#]+)"/g)].map(([, path]) => new URL(path!, url));
    expect(parts.length).toBeGreaterThan(1);
    for (const part of parts) expect((await fetch(part)).status, part.href).toBe(200);
    child.kill("SIGTERM");
    expect(await child.exited).toBe(0);
  });
});
