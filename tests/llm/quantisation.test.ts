import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type EngineOptions, LLM } from "octavo";
import { ConfigError } from "../../src/base/errors.ts";
import { fixture } from "../model/fixtures.ts";
import { temporaryFolder } from "../support.ts";

setDefaultTimeout(300_000);

const CPU = { device: "cpu", skipTokenizerInit: true } as const;
const PROMPT = { promptTokenIds: [1, 2, 3] };
const GREEDY = { temperature: 0, maxTokens: 3, ignoreEos: true };

async function loadedAs(model: string | undefined, options: EngineOptions) {
  await using llm = await LLM.create(model, { ...CPU, ...options });
  const [output] = await llm.generate([PROMPT], GREEDY);
  expect(output!.outputs[0]!.tokenIds.length).toBe(3);
  return llm.weights;
}

describe("the weights' form and bytes", () => {
  test("of a model in floats, as it is and quantised while it is loaded", async () => {
    const plain = await loadedAs(undefined, {});
    // Norms alone are not in the checkpoint's dtype.
    const norms = 6 * (2 * 256 + 2 * 64) + 256;
    expect(plain).toEqual({ format: "bfloat16", bytes: 5_771_264 * 2 + norms * 2 });
    expect(await loadedAs(undefined, { device: "cpu-reference" })).toEqual({
      format: "float32",
      bytes: 5_771_264 * 4,
    });
    const matrices = 6 * (512 * 256 + 256 * 256 + 3 * 256 * 768);
    const channels = 6 * (512 + 256 + 2 * 768 + 256);
    const quantised = { format: "fp8 by channels", bytes: plain.bytes - matrices + 4 * channels };
    expect(await loadedAs(undefined, { quantization: "fp8" })).toEqual(quantised);
    expect(await loadedAs(undefined, { quantization: "fp8_per_channel" })).toEqual(quantised);
    expect((await loadedAs(undefined, { quantization: "fp8_per_block" })).format).toBe(
      "fp8 in blocks of 128",
    );
    const ranks = await loadedAs(undefined, { quantization: "fp8", tensorParallelSize: 2 });
    // Of both ranks: norms, factors of matrices that are divided by columns and a few tokens are on each.
    expect(ranks.bytes).toBeGreaterThan(quantised.bytes);
    expect(ranks.bytes).toBeLessThan(1.01 * quantised.bytes);
  });

  test("of quantised ones", async () => {
    const format = async (name: Parameters<typeof fixture>[0]) =>
      (await loadedAs(fixture(name).modelDir, {})).format;
    expect(await format("quantised-awq")).toBe("int4 in groups of 64 with zero points, bfloat16");
    expect(await format("quantised-gptq")).toBe("int4 by channels");
    expect(await format("quantised-ct-int8")).toBe("int8 by channels, bfloat16");
  });
});

describe("random weights", () => {
  test.each([
    ["fp8 by channels", { quantization: "fp8" }, undefined],
    [
      "fp8 by channels",
      { quantization: "fp8" },
      { quant_method: "compressed-tensors", config_groups: {}, kv_cache_scheme: { num_bits: 8 } },
    ],
    ["fp8 by channels", { quantization: "fbgemm_fp8" }, { quant_method: "fbgemm_fp8" }],
    ["fp8 in blocks of 128", {}, { quant_method: "fp8", weight_block_size: [128, 128] }],
    ["int4 in groups of 128", {}, { quant_method: "gptq", bits: 4, group_size: 128 }],
    ["int4 in groups of 64 with zero points", {}, { quant_method: "awq", bits: 4, group_size: 64 }],
    ["int8 by channels", {}, { quant_method: "gptq", bits: 8, group_size: -1 }],
  ] as const)("of %s", async (format, options, quantization_config) => {
    using folder = temporaryFolder();
    const config = JSON.parse(
      readFileSync(join(import.meta.dir, "../../models/tiny-stories/config.json"), "utf8"),
    );
    writeFileSync(folder.file("config.json"), JSON.stringify({ ...config, quantization_config }));
    expect((await loadedAs(folder.path, { ...options, loadFormat: "dummy" })).format).toBe(format);
  });
});

test("random weights of groups that do not fit the model are refused", async () => {
  for (const group_size of [100, 0, 512]) {
    using folder = temporaryFolder();
    const config = JSON.parse(
      readFileSync(join(import.meta.dir, "../../models/tiny-stories/config.json"), "utf8"),
    );
    const quantization_config = { quant_method: "gptq", bits: 4, group_size };
    writeFileSync(folder.file("config.json"), JSON.stringify({ ...config, quantization_config }));
    const refused = LLM.create(folder.path, { ...CPU, loadFormat: "dummy" });
    await expect(refused).rejects.toThrow(`groups of ${group_size} are not supported`);
  }
});

test("a quantised checkpoint is not quantised again", async () => {
  const refused = async (
    name: Parameters<typeof fixture>[0],
    quantization: NonNullable<EngineOptions["quantization"]>,
  ) =>
    await LLM.create(fixture(name).modelDir, { ...CPU, quantization }).then(
      async (llm) => await llm.dispose(),
      (error: unknown) => error,
    );
  const error = await refused("quantised-awq", "fp8");
  expect(error).toBeInstanceOf(ConfigError);
  expect((error as ConfigError).option).toBe("quantization");
  expect((error as ConfigError).message).toContain("quantised already (awq)");
  expect(await refused("quantised-ct-fp8-channel", "fp8_per_block")).toBeInstanceOf(ConfigError);
  expect(await refused("quantised-ct-fp8-channel", "fp8")).toBeUndefined();
  expect(await refused("quantised-gptq", "gptq")).toBeUndefined();
  expect(await refused("quantised-fp8-modelopt", "modelopt")).toBeUndefined();
  expect(await refused("quantised-gptq", "awq")).toBeInstanceOf(ConfigError);
  expect(((await refused("qwen3", "awq")) as ConfigError).message).toContain("this one is in floats");
});

test("blocks of a GGUF file are not quantised again", async () => {
  const refused = LLM.create(fixture("gguf-qwen3").modelDir, { ...CPU, quantization: "fp8" });
  await expect(refused).rejects.toThrow("this one is quantised already (gguf)");
});
