import { expect, setDefaultTimeout, test } from "bun:test";
import { copyFileSync } from "node:fs";
import { join } from "node:path";
import { AsyncLLM, WORKER_SCRIPTS } from "../../src/async/async-llm.ts";
import { EngineClient } from "../../src/async/engine-client.ts";
import { resolveEngineConfig } from "../../src/base/config.ts";
import { EngineDeadError, ModelDataError } from "../../src/base/errors.ts";
import { embeddedModel } from "../../src/llm/embedded-model.ts";
import { loadModel } from "../../src/llm/load-model.ts";
import { temporaryFolder } from "../support.ts";
import { rejection, SMALL } from "./support.ts";

setDefaultTimeout(300_000);

const CONFIG = resolveEngineConfig(SMALL);

test("engine worker and text worker start beside each other", async () => {
  const scripts = {
    engine: new URL("./waiting-engine-worker.ts", import.meta.url),
    text: new URL("./waiting-text-worker.ts", import.meta.url),
  };
  // Each of them waits for the other: one after the other, this would never end.
  const error = await rejection(AsyncLLM.start(scripts, undefined, CONFIG));
  expect(error).toMatchObject({ message: "met", code: "a folder" });
});

/** The embedded model with a merge of tokens that do not exist, which only an encoder notices. */
async function modelThatCannotEncode() {
  const folder = temporaryFolder();
  for (const file of ["config.json", "generation_config.json", "model.safetensors", "tokenizer_config.json"])
    copyFileSync(join(embeddedModel(), file), folder.file(file));
  const tokenizer = await Bun.file(join(embeddedModel(), "tokenizer.json")).json();
  tokenizer.model.merges.push(["no such token", "nor this"]);
  await Bun.write(folder.file("tokenizer.json"), JSON.stringify(tokenizer));
  return folder;
}

test("the engine worker decodes without the encoder's tables", async () => {
  using folder = await modelThatCannotEncode();
  const engine = await EngineClient.start(WORKER_SCRIPTS.engine, { model: folder.path, config: CONFIG });
  await engine.close(new EngineDeadError("done"));
  const error = await rejection(AsyncLLM.start(WORKER_SCRIPTS, folder.path, CONFIG));
  expect(error).toBeInstanceOf(ModelDataError);
  expect(error).toMatchObject({ message: expect.stringContaining("merge") });
});

test("a model is loaded without an encoder unless that is asked for", async () => {
  for (const withEncoder of [false, true]) {
    const loaded = await loadModel(undefined, CONFIG, { withEncoder });
    try {
      expect(loaded.tokenizer!.decode([300, 301])).not.toBe("");
      expect(loaded.tokenizer!.hasEncoder).toBe(withEncoder);
      expect(loaded.encoder !== undefined).toBe(withEncoder);
    } finally {
      loaded.dispose();
    }
  }
});
