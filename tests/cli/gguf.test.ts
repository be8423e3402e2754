import { expect, setDefaultTimeout, test } from "bun:test";
import { cpSync, mkdirSync, truncateSync } from "node:fs";
import { join } from "node:path";
import { writeGgufModel } from "../gguf-model.ts";
import { fixture } from "../model/fixtures.ts";
import { temporaryFolder } from "../support.ts";
import { expectRefusal, generate, MODEL, octavo, serve } from "./support.ts";

setDefaultTimeout(300_000);

const STORY = "Once upon a time, there was a little girl named Lily. She loved to\n";

test("generate and serve take a GGUF file, or a folder that holds one", async () => {
  using folder = temporaryFolder();
  mkdirSync(folder.file("model"));
  const file = folder.file("model/tiny.gguf");
  writeGgufModel(MODEL, file);
  const { code, stdout } = await generate([
    ...["Once upon a time", "--model", file, "--temperature", "0", "--max-tokens", "12"],
  ]);
  expect([code, stdout]).toEqual([0, STORY]);
  for (const model of [file, folder.file("model")]) {
    using server = await serve([model, "--max-model-len", "128"]);
    expect(server.banner).toContain(`serves ${model} at`);
    const reply = await server.complete({ model, prompt: "Once upon a time", max_tokens: 12 });
    expect(await reply.json()).toMatchObject({ model, choices: [{ text: STORY.slice(16, -1) }] });
    const chat = await fetch(`${server.url}/v1/chat/completions`, {
      ...{ method: "POST", headers: { "Content-Type": "application/json" } },
      body: JSON.stringify({ model, messages: [{ role: "user", content: "A cat" }], max_tokens: 3 }),
    });
    expect(chat.status).toBe(200);
  }
});

test("doctor looks at one without loading it: blocks that stay as they are, and those that become floats", async () => {
  using folder = temporaryFolder();
  cpSync(fixture("gguf-qwen2").modelDir, folder.file("model.gguf"));
  for (const model of [folder.path, folder.file("model.gguf")]) {
    const { code, stdout } = await octavo(["doctor", model, "--json"]);
    expect(code).toBe(0);
    const { weights } = JSON.parse(stdout).model;
    expect(weights.format).toMatch(/int[48] in groups of 32/);
    expect(weights.bytes).toBeGreaterThan(100_000);
  }
  expectRefusal(await octavo(["doctor", join(import.meta.dir, "gguf.test.ts")]), 66, "nor a GGUF file");
});

test("a file that is cut off is refused in one line, and so is one that does not exist", async () => {
  using folder = temporaryFolder();
  const file = folder.file("tiny.gguf");
  writeGgufModel(MODEL, file);
  truncateSync(file, 5000);
  expectRefusal(await generate(["--model", file, "x"]), 65, file);
  expectRefusal(await generate(["--model", folder.file("none.gguf"), "x"]), 66, "does not exist");
});
