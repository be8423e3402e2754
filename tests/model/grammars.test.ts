import { expect, setDefaultTimeout, test } from "bun:test";
import { copyFileSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { LLM } from "octavo";
import { temporaryFolder } from "../support.ts";
import { type FixtureName, fixture } from "./fixtures.ts";

setDefaultTimeout(300_000);

const STORIES = fixture("tiny-stories").modelDir;
const SCHEMA = {
  ...{ type: "object", additionalProperties: false, required: ["age", "pet"] },
  properties: { age: { type: "integer", minimum: 0, maximum: 99 }, pet: { enum: ["cat", "dog"] } },
};
/** Some begin with all of others, and are longer than a window and a tile. */
const PROMPTS = [1, 4, 30, 31].map((times) => "Once upon a time there was a cat. ".repeat(times));

/** A model of the fixture's layers for the embedded model's tokens, without weights. */
function withTokens(name: FixtureName, folder: { file(name: string): string }): void {
  const read = (path: string) => JSON.parse(readFileSync(join(path, "config.json"), "utf8"));
  const { vocab_size, eos_token_id } = read(STORIES);
  const config = { ...read(fixture(name).modelDir), vocab_size, eos_token_id };
  if (config.vocab_size_per_layer_input) config.vocab_size_per_layer_input = vocab_size;
  writeFileSync(folder.file("config.json"), JSON.stringify(config));
  for (const file of ["tokenizer.json", "tokenizer_config.json"])
    copyFileSync(join(STORIES, file), folder.file(file));
}

test.each([
  ["gemma4-e", 2],
  ["qwen3-5", 1],
] as const)(
  "replies of %s are held to a schema, in chunks and from prefixes, on %d ranks",
  async (name, ranks) => {
    using folder = temporaryFolder();
    withTokens(name, folder);
    await using llm = await LLM.create(folder.path, {
      ...{ device: "cpu", loadFormat: "dummy", maxModelLen: 512, tensorParallelSize: ranks },
      ...{ maxNumBatchedTokens: 48, overlapScheduling: true },
    });
    const params = { temperature: 1, seed: 3, n: 2, maxTokens: 100 };
    for (let round = 0; round < 2; round++) {
      const outputs = await llm.generate(PROMPTS, {
        ...params,
        structuredOutputs: { json: SCHEMA, disableAnyWhitespace: true },
      });
      for (const { text, finishReason } of outputs.flatMap((output) => output.outputs)) {
        expect(finishReason).toBe("stop");
        expect(text).toMatch(/^\{"age":\d\d?,"pet":"(?:cat|dog)"\}$/);
      }
      if (round > 0) expect(outputs.at(-1)!.numCachedTokens).toBeGreaterThan(150);
    }
  },
);
