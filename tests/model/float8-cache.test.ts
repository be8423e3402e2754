import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { copyFileSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { LLM } from "octavo";
import { SafetensorsFile } from "../../src/loader/safetensors.ts";
import { readModelConfig } from "../../src/models/config.ts";
import { temporaryFolder } from "../support.ts";
import { f32, safetensors } from "../unit/loader/support.ts";
import { relativeError } from "./compare.ts";
import { FIXTURES, type Fixture } from "./fixtures.ts";
import { checkLogits, referenceSuite, type Tolerance } from "./suite.ts";

setDefaultTimeout(300_000);

/**
 * Each key and value is rounded by up to 2^−4 of itself, 2 to 3% on average. In logits it is hardly more: what rounding moves is
 * averaged over tokens and dimensions, and added to a residual stream. Single logits are off by several times the average.
 */
const FLOAT8: Tolerance = { stds: 0.3, relative: 2 ** -4, cosine: 0.998, logprob: 0.5, greedyGap: 0.5 };
const OPTIONS = { device: "cpu", skipTokenizerInit: true, kvCacheDtype: "fp8" } as const;

for (const fixture of FIXTURES) {
  referenceSuite(fixture, [{ name: "a cache in eight bits", options: OPTIONS, maxPrompt: 100 }], FLOAT8);
}

const fixture = FIXTURES.find(({ name }) => name === "qwen3")!;
const [long] = fixture.cases.filter(({ prompt }) => prompt.length > 64 && prompt.length < 300);

describe("a cache in eight bits", () => {
  test("holds what is computed in chunks as what is computed at once, to the bit", async () => {
    const all: Float32Array[] = [];
    for (const maxNumBatchedTokens of [1024, 7]) {
      await using llm = await LLM.create(fixture.modelDir, { ...OPTIONS, maxNumBatchedTokens });
      all.push(await llm.logits(long!.prompt));
    }
    expect(all[1]).toEqual(all[0]!);
  });

  test("is of use to the next request with the same prefix, which continues the same", async () => {
    await using llm = await LLM.create(fixture.modelDir, OPTIONS);
    const run = () => llm.generate({ promptTokenIds: long!.prompt }, { temperature: 0, maxTokens: 20 });
    const [[cold], [warm]] = [await run(), await run()];
    expect([cold!.numCachedTokens, warm!.numCachedTokens]).toEqual([
      0,
      16 * Math.floor((long!.prompt.length - 1) / 16),
    ]);
    expect(warm!.outputs[0]!.tokenIds).toEqual(cold!.outputs[0]!.tokenIds);
  });

  test("has room for four times the tokens of float32", async () => {
    const { numLayers, numKvHeads, headDim } = readModelConfig(fixture.modelDir);
    const kvCacheMemoryBytes = 5 * 16 * 2 * numLayers * numKvHeads * headDim * 4;
    const lengths: number[] = [];
    for (const kvCacheDtype of ["auto", "fp8", "fp8_e4m3"] as const) {
      await using llm = await LLM.create(fixture.modelDir, { ...OPTIONS, kvCacheDtype, kvCacheMemoryBytes });
      lengths.push(llm.maxModelLen);
    }
    expect(lengths).toEqual([80, 320, 320]);
  });
});

describe("scales of the checkpoint", () => {
  const logits = async (scales: Readonly<Record<string, number>>) => {
    using folder = calibrated(fixture, scales);
    await using llm = await LLM.create(folder.path, OPTIONS);
    return await llm.logits(long!.prompt);
  };
  const both = (layer: number, key: number, value: number) => ({
    [`model.layers.${layer}.self_attn.k_scale`]: key,
    [`model.layers.${layer}.self_attn.v_scale`]: value,
  });

  test("of any size leave the model as it is while nothing saturates", async () => {
    const scaled = await logits({ ...both(0, 0.11, 0.03), ...both(1, 0.37, 0.007) });
    checkLogits(scaled, fixture.vocabSize, long!, FLOAT8);
  });

  test.each([0, 1])("are applied to layer %d: too small ones lose it", async (layer) => {
    const [plain, small] = [await logits({}), await logits(both(layer, 1e-4, 1e-4))];
    expect(relativeError(small, plain)).toBeGreaterThan(6 * FLOAT8.relative);
  });

  test("are ignored where the cache has the dtype of the model", async () => {
    using folder = calibrated(fixture, both(0, 1e-4, 1e-4));
    await using llm = await LLM.create(folder.path, { ...OPTIONS, kvCacheDtype: "auto" });
    await using plain = await LLM.create(fixture.modelDir, { ...OPTIONS, kvCacheDtype: "auto" });
    expect(await llm.logits(long!.prompt)).toEqual(await plain.logits(long!.prompt));
  });
});

/** The fixture's model with scales in a shard of their own. */
function calibrated({ modelDir }: Fixture, scales: Readonly<Record<string, number>>) {
  const folder = temporaryFolder();
  for (const name of readdirSync(modelDir))
    copyFileSync(join(modelDir, name), folder.file(name.replace("model.", "weights.")));
  const tensors = Object.fromEntries(Object.entries(scales).map(([name, scale]) => [name, f32([], [scale])]));
  writeFileSync(folder.file("scales.safetensors"), safetensors(tensors));
  using weights = SafetensorsFile.open(folder.file("weights.safetensors"));
  const map = [
    ...[...weights.tensors.keys()].map((name) => [name, "weights.safetensors"]),
    ...Object.keys(scales).map((name) => [name, "scales.safetensors"]),
  ];
  const index = { weight_map: Object.fromEntries(map) };
  writeFileSync(folder.file("model.safetensors.index.json"), JSON.stringify(index));
  return folder;
}
