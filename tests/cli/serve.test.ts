import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { eventually, temporaryFolder } from "../support.ts";
import { expectRefusal, octavo, serve, startOctavo, textOf } from "./support.ts";

setDefaultTimeout(300_000);

/** Whether connections to the address are refused. */
async function isClosed(url: string): Promise<boolean> {
  return fetch(`${url}/live`).then(
    () => false,
    () => true,
  );
}

test("says what it loaded, serves it, logs requests, and ends with 0 at SIGTERM", async () => {
  using server = await serve(["--max-model-len", "128", "--served-model-name", "tiny"]);
  expect(server.banner).toMatch(
    /tiny-stories on cpu, float32, weights of 11 MiB in bfloat16, context of 128 tokens, \d+ KV blocks of 16/,
  );
  expect(server.banner).toContain("serves tiny at");
  expect((await fetch(`${server.url}/health`)).status).toBe(200);
  const reply = await server.complete({ model: "tiny", prompt: "Once upon a time", max_tokens: 5 });
  expect(await reply.json()).toMatchObject({ model: "tiny", choices: [{ text: ", there was a little" }] });
  server.child.kill("SIGTERM");
  expect(await server.child.exited).toBe(0);
  const entries = (await server.log())
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
  expect(entries.at(-1)).toMatchObject({ path: "/v1/completions", status: 200, completionTokens: 5 });
});

test("-dp: several replicas behind one port", async () => {
  using server = await serve(["-dp", "2", "--kv-cache-memory-bytes", "64M"]);
  expect(server.banner).toContain("KV blocks of 16 tokens, 2 replicas, loaded");
  expect(await (await fetch(`${server.url}/health`)).json()).toEqual({ replicas: ["ok", "ok"] });
  const prompt = ["Once upon a time", "Once upon a time"];
  const reply = await server.complete({ prompt, max_tokens: 5 });
  expect(await reply.json()).toMatchObject({
    choices: [{ text: ", there was a little" }, { text: ", there was a little" }],
  });
  server.child.kill("SIGTERM");
  expect(await server.child.exited).toBe(0);
});

const LONG = { prompt: "Once upon a time", max_tokens: 300, ignore_eos: true, stream: true };

test("SIGTERM lets an open stream finish and refuses new requests", async () => {
  using server = await serve();
  const stream = await server.complete(LONG);
  const text = textOf(stream.body!);
  let received = (await text.next()).value ?? "";
  server.child.kill("SIGTERM");
  await server.shuttingDown();
  const refused = await server.complete(LONG);
  expect([refused.status, await refused.json()]).toEqual([
    503,
    { error: expect.objectContaining({ code: "shutting_down" }) },
  ]);
  for await (const part of text) received += part;
  expect(received).toContain('"finish_reason":"length"');
  expect(received).toEndWith("data: [DONE]\n\n");
  expect(await server.child.exited).toBe(0);
  expect(await isClosed(server.url)).toBe(true);
});

test("a second signal ends it at once; without time to finish, a stream ends with an error", async () => {
  for (const [signal, code] of [
    ["SIGTERM", 143],
    ["SIGINT", 130],
  ] as const) {
    using server = await serve();
    const stream = await server.complete(LONG);
    await textOf(stream.body!).next();
    server.child.kill(signal);
    await server.shuttingDown();
    server.child.kill(signal);
    expect(await server.child.exited).toBe(code);
  }
  using server = await serve(["--shutdown-timeout", "0"]);
  const stream = await server.complete(LONG);
  const text = textOf(stream.body!);
  let received = (await text.next()).value ?? "";
  server.child.kill("SIGINT");
  for await (const part of text) received += part;
  expect(received).toContain('"code":"shutting_down"');
  expect(received).not.toContain("[DONE]");
  expect(await server.child.exited).toBe(0);
});

test("a closed log does not stop it", async () => {
  using server = await serve();
  await server.child.stderr.cancel();
  for (let i = 0; i < 3; i++)
    expect((await server.complete({ prompt: "Once", max_tokens: 1 })).status).toBe(200);
});

test("keys come from the environment, all else from a file too", async () => {
  using folder = temporaryFolder();
  writeFileSync(folder.file("octavo.yaml"), "served-model-name: [a, b]\nmax_model_len: 64\nhost: 0.0.0.0");
  const env = { VLLM_API_KEY: "secret" };
  using server = await serve(["--config", folder.file("octavo.yaml")], { env });
  const url = server.url.replace("0.0.0.0", "127.0.0.1");
  expect((await fetch(`${url}/v1/models`)).status).toBe(401);
  const models = await fetch(`${url}/v1/models`, { headers: { Authorization: "Bearer secret" } });
  const { data } = (await models.json()) as { data: object[] };
  expect(data).toMatchObject([
    { id: "a", max_model_len: 64 },
    { id: "b", max_model_len: 64 },
  ]);
});

test("while the model loads the port answers 503, /live 200; SIGTERM then ends it with 0", async () => {
  using folder = temporaryFolder();
  // A named pipe that nobody writes to: reading config.json takes for ever.
  Bun.spawnSync(["mkfifo", folder.file("config.json")]);
  using free = Bun.serve({ port: 0, fetch: () => new Response() });
  const { port } = free;
  await free.stop(true);
  const child = startOctavo(["serve", folder.path, "--port", String(port)]);
  const url = `http://127.0.0.1:${port}`;
  await eventually(async () => !(await isClosed(url)));
  expect((await fetch(`${url}/live`)).status).toBe(200);
  const response = await fetch(`${url}/health`);
  expect([response.status, await response.json()]).toEqual([
    503,
    { error: expect.objectContaining({ code: "loading" }) },
  ]);
  child.kill("SIGTERM");
  expect(await child.exited).toBe(0);
});

test("a connection from while the model loads is served by the model", async () => {
  using free = Bun.serve({ port: 0, fetch: () => new Response() });
  const port = free.port!;
  await free.stop(true);
  const child = startOctavo(["serve", "--port", String(port)]);
  while (await isClosed(`http://127.0.0.1:${port}`)) await Bun.sleep(1);
  let received = "";
  let closed = false;
  const socket = await Bun.connect({
    ...{ hostname: "127.0.0.1", port },
    socket: {
      data: (_, data) => {
        received += data.toString();
      },
      close: () => {
        closed = true;
      },
    },
  });
  const ask = async () => {
    received = "";
    socket.write("GET /ready HTTP/1.1\r\nHost: a\r\n\r\n");
    await eventually(() => closed || received.includes("\r\n\r\n"));
    return received.slice("HTTP/1.1 ".length, "HTTP/1.1 200".length);
  };
  while ((await ask()) === "503") await Bun.sleep(5);
  expect([closed, await ask()]).toEqual([false, "200"]);
  socket.end();
  child.kill("SIGTERM");
  expect(await child.exited).toBe(0);
});

test("octavo bench serve measures it", async () => {
  using server = await serve();
  const args = ["bench", "serve", "--base-url", server.url, "--num-prompts", "6", "--input-len", "8"];
  const { code, stdout, stderr } = await octavo([...args, "--output-len", "5", "--request-rate", "50"]);
  expect([code, stderr]).toEqual([0, ""]);
  expect(stdout).toMatch(/Requests completed +6\nRequests failed +0\n/);
  expect(stdout).toMatch(/Prompt tokens +48\nOutput tokens +30\n/);
});

describe("refuses to start", () => {
  test("beyond loopback without a key: 64", async () => {
    const env = { VLLM_API_KEY: "", OCTAVO_API_KEY: "" };
    for (const host of ["0.0.0.0", "::", "192.0.2.1"])
      expectRefusal(await octavo(["serve", "--host", host], { env }), 64, host, "--api-key");
  });

  test("on a port in use, before the model is loaded: 73", async () => {
    using taken = Bun.serve({ hostname: "127.0.0.1", port: 0, fetch: () => new Response() });
    const args = ["serve", "./no/such/folder", "--port", String(taken.port)];
    expectRefusal(await octavo(args), 73, String(taken.port));
  });

  test.each<[readonly string[], number, string]>([
    [["./no/such/folder"], 66, "no/such/folder"],
    [["--port", "70000"], 64, "--port must be"],
    [["--max-queue-length", "-1"], 64, "--max-queue-length must be"],
    [["--block-size", "3"], 64, "--block-size must be"],
    [["--model", "a/b", "c/d"], 64, "not both"],
    [["-q", "int3"], 64, "--quantization must be one of fp8"],
    [["--device", "cuda"], 69, "NVIDIA"],
  ])("%j: %d", async (args, code, part) => {
    expectRefusal(await octavo(["serve", "--port", "0", ...args]), code, part);
  });
});
