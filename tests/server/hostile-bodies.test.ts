import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { cpuClock, temporaryFolder } from "../support.ts";
import { canary, expectUnharmed, PROMPT, TestServer } from "./support.ts";

setDefaultTimeout(300_000);

const CLIENT = join(import.meta.dir, "body-client.ts");
const COMPLETIONS = "/v1/completions";
const CHAT = "/v1/chat/completions";
const TIMES = 4;
/**
 * CPU time in seconds that a body of 4 MiB may take of the server's own thread, which answers `/live`: to take it in and to
 * pass it on. Parsing it there would take several times as much.
 */
const MOST = 0.05;

let server: TestServer;
let before: string;
beforeAll(async () => {
  server = await TestServer.start();
  before = await canary(server);
});
afterAll(async () => {
  await expectUnharmed(server, before);
  await server[Symbol.asyncDispose]();
});

/** CPU seconds of this thread for each of the bodies, and the last reply's error. */
async function send(path: string, body: string) {
  using folder = temporaryFolder();
  writeFileSync(folder.file("body.json"), body);
  const args = [CLIENT, new URL(path, server.running.url).href, folder.file("body.json"), String(TIMES)];
  const seconds = cpuClock();
  const client = Bun.spawn([process.execPath, ...args], { stdout: "pipe", stderr: "inherit" });
  const { statuses, error } = JSON.parse(await new Response(client.stdout).text());
  return { each: seconds() / TIMES, statuses: new Set(statuses), error };
}

const many = (item: string, bytes: number) =>
  new Array(Math.floor(bytes / (item.length + 1))).fill(item).join();
const SIZE = 4_100_000;
const HUGE_SEED = '"seed":9007199254740993';

describe("a body of 4 MiB costs the server's thread little", () => {
  test.each<readonly [string, string, string, object]>([
    [
      "two million token ids and a seed beyond 2^53",
      COMPLETIONS,
      `{${HUGE_SEED},"prompt":[${many("0", SIZE)}]}`,
      { code: "context_length_exceeded", param: "prompt" },
    ],
    [
      "two million texts",
      COMPLETIONS,
      `{${HUGE_SEED},"prompt":"a","stop":[${many('""', SIZE)}]}`,
      { code: "invalid_value", param: "stop" },
    ],
    [
      "two million allowed ids",
      COMPLETIONS,
      `{"prompt":"a","allowed_token_ids":[${many("1", SIZE)}]}`,
      { code: "invalid_value", param: "allowed_token_ids" },
    ],
    [
      "a field that nothing knows, of two million numbers",
      COMPLETIONS,
      `{${HUGE_SEED},"x":[${many("1.0", SIZE)}],"prompt":[4096]}`,
      { code: "invalid_token_id", param: "prompt" },
    ],
    [
      "a million numbers that a template prints",
      CHAT,
      `{"messages":[{"role":"user","content":"Hi"}],"tools":[${many("1.0", SIZE)}]}`,
      { code: "invalid_value", param: "tools" },
    ],
    [
      "a million tokens to turn into text",
      "/detokenize",
      `{"tokens":[${many("5", SIZE)}]}`,
      { code: "invalid_value", param: "tokens" },
    ],
    [
      "fields of a message",
      CHAT,
      `{"messages":[{"role":"user","content":null,${many('"a":1', SIZE)}}]}`,
      { code: "invalid_value", param: "messages" },
    ],
    [
      "a text that is no JSON",
      COMPLETIONS,
      `{"prompt":"${"\\u00e9".repeat(600_000)}`,
      { code: "invalid_json" },
    ],
  ])("%s", async (_, path, body, refusal) => {
    const { each, statuses, error } = await send(path, body);
    expect(error).toMatchObject(refusal);
    expect([...statuses]).toEqual([400]);
    expect(each).toBeLessThan(MOST);
  });
});

test("a body that is accepted says the same, whichever thread parses it", async () => {
  const fields = { max_tokens: 2, temperature: 0, prompt: PROMPT };
  const [inline, ...others] = await Promise.all(
    [0, 20_000, 300_000].map(async (size) => {
      const reply = await server.post(COMPLETIONS, { ...fields, metadata: "x".repeat(size), unheard: 1 });
      const { choices, usage } = (await reply.json()) as { choices: unknown; usage: unknown };
      return { choices, usage };
    }),
  );
  for (const other of others) expect(other).toEqual(inline!);
  expect(await server.metric("octavo:unknown_fields_total", 'field="unheard"')).toBe(3);
});
