import { expect, setDefaultTimeout, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { ModelDataError } from "../../../src/base/errors.ts";
import { readGenerationConfig } from "../../../src/models/generation-config.ts";
import { temporaryFolder } from "../../support.ts";
import { LLAMA, readConfig } from "./read-config.ts";

setDefaultTimeout(300_000);

const model = readConfig(LLAMA);
const generation = (config?: unknown) => {
  using folder = temporaryFolder();
  if (config !== undefined) writeFileSync(folder.file("generation_config.json"), JSON.stringify(config));
  return readGenerationConfig(folder.path, model);
};

test("fields under Octavo's names; absent ones stay absent", () => {
  const config = {
    temperature: 0.6,
    top_p: 0.95,
    top_k: 20,
    min_p: 0,
    repetition_penalty: 1.05,
    eos_token_id: 7,
  };
  expect(generation({ ...config, max_new_tokens: 2048, do_sample: true })).toEqual({
    eosTokenIds: [7],
    sampling: { temperature: 0.6, topP: 0.95, topK: 20, minP: 0, repetitionPenalty: 1.05 },
  });
  const { sampling, eosTokenIds } = generation({ ...config, do_sample: false, eos_token_id: null });
  expect(sampling).toEqual({ repetitionPenalty: 1.05 });
  expect(eosTokenIds).toEqual(model.eosTokenIds);
});

test("no file: the model config's end-of-sequence ids, no recommendations", () => {
  expect(generation()).toEqual({ eosTokenIds: model.eosTokenIds, sampling: {} });
});

test.each([
  { temperature: -1 },
  { temperature: "hot" },
  { top_p: 0 },
  { top_p: 1.1 },
  { top_k: 1.5 },
  { min_p: 2 },
  { repetition_penalty: 0 },
  { eos_token_id: [128256] },
  { do_sample: 1 },
  "text",
])("%j is refused", (config) => {
  expect(() => generation(config)).toThrow(ModelDataError);
});
