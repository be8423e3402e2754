import { expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";
import { ModelDataError, ModelNotFoundError, UnsupportedModelError } from "../../../src/base/errors.ts";
import { readModelConfig } from "../../../src/models/config.ts";
import { temporaryFolder, thrown } from "../../support.ts";
import { LLAMA, LLAMA3_SCALING, readConfig } from "./read-config.ts";

setDefaultTimeout(300_000);

function without(...names: string[]): Record<string, unknown> {
  return Object.fromEntries(Object.entries(LLAMA).filter(([name]) => !names.includes(name)));
}

test("the embedded model", () => {
  const config = readModelConfig(join(import.meta.dir, "../../../models/tiny-stories"));
  expect(config).toMatchObject({ architecture: "Qwen3ForCausalLM", headDim: 64, tieWordEmbeddings: true });
  expect(config.layerRopes[0]!).toEqual({
    theta: 10000,
    partialRotaryFactor: 1,
    scaling: { kind: "none" },
  });
  expect(config.eosTokenIds).toEqual([4089]);
});

test("Llama 3.1 in the spellings of transformers 4 and 5", () => {
  const { torch_dtype, rope_theta, ...common } = LLAMA;
  const old = readConfig({ ...LLAMA, rope_scaling: { rope_type: "llama3", ...LLAMA3_SCALING } });
  const older = readConfig({ ...LLAMA, rope_scaling: { type: "llama3", ...LLAMA3_SCALING } });
  const rope_parameters = { rope_type: "llama3", rope_theta, ...LLAMA3_SCALING };
  const recent = readConfig({ ...common, dtype: torch_dtype, rope_parameters });
  expect(recent).toEqual(old);
  expect(older).toEqual(old);
  expect(old.layerRopes[0]).toEqual({
    theta: 500000,
    partialRotaryFactor: 1,
    scaling: {
      kind: "llama3",
      factor: 8,
      lowFreqFactor: 1,
      highFreqFactor: 4,
      originalMaxPositionEmbeddings: 8192,
    },
  });
  expect(old).toMatchObject({ headDim: 128, dtype: "bfloat16", attentionBias: false });
  expect(JSON.stringify(old)).not.toContain("evil");
  for (const part of [
    old,
    old.layerRopes,
    old.layerRopes[0],
    old.layerRopes[0]!.scaling,
    old.eosTokenIds,
    old.layerWindows,
  ])
    expect(Object.isFrozen(part)).toBe(true);
});

test("defaults of absent and null fields", () => {
  const optional = ["num_key_value_heads", "rope_theta", "attention_bias", "mlp_bias", "torch_dtype"];
  const config = readConfig({
    ...without(...optional, "tie_word_embeddings", "eos_token_id", "rms_norm_eps"),
    ...{ head_dim: null, sliding_window: null, rope_scaling: null, quantization_config: null },
  });
  expect(config).toMatchObject({ numKvHeads: 32, headDim: 128, mlpBias: false, tieWordEmbeddings: false });
  expect(config).toMatchObject({ layerWindows: [0, 0, 0, 0], rmsNormEps: 1e-6, eosTokenIds: [2] });
  expect(config.layerRopes[0]!.theta).toBe(10000);
  expect(config.attentionBias).toBeUndefined();
  expect(config.dtype).toBeUndefined();
});

// As transformers' configuration classes have them.
test.each([
  [
    "LlamaForCausalLM",
    {
      numKvHeads: 32,
      headDim: 128,
      intermediateSize: 11008,
      maxPositionEmbeddings: 2048,
      vocabSize: 32000,
    },
    { eosTokenIds: [2], layerWindows: new Array(32).fill(0) },
  ],
  [
    "MistralForCausalLM",
    {
      numKvHeads: 8,
      headDim: 128,
      intermediateSize: 14336,
      maxPositionEmbeddings: 131072,
      vocabSize: 32000,
    },
    { eosTokenIds: [2], layerWindows: new Array(32).fill(4096) },
  ],
  [
    "Qwen2ForCausalLM",
    {
      numKvHeads: 32,
      headDim: 128,
      intermediateSize: 22016,
      maxPositionEmbeddings: 32768,
      vocabSize: 151936,
    },
    { eosTokenIds: [], layerWindows: new Array(32).fill(0) },
  ],
  [
    "Qwen3ForCausalLM",
    {
      numKvHeads: 32,
      headDim: 128,
      intermediateSize: 22016,
      maxPositionEmbeddings: 32768,
      vocabSize: 151936,
    },
    { eosTokenIds: [], layerWindows: new Array(32).fill(0) },
  ],
])("a config that is silent has the defaults of %s", (architecture, sizes, others) => {
  const common = { hiddenSize: 4096, numLayers: 32, numHeads: 32, activation: "silu", rmsNormEps: 1e-6 };
  expect(readConfig({ architectures: [architecture] })).toMatchObject({
    ...common,
    ...sizes,
    ...others,
  } as never);
});

test("null is not silence", () => {
  const mistral = { ...LLAMA, architectures: ["MistralForCausalLM"] };
  expect(
    readConfig({ ...mistral, num_key_value_heads: null, sliding_window: null, eos_token_id: null }),
  ).toMatchObject({
    numKvHeads: 32,
    layerWindows: [0, 0, 0, 0],
    eosTokenIds: [],
  });
  const qwen3 = { ...LLAMA, architectures: ["Qwen3ForCausalLM"], hidden_size: 2048 };
  expect(readConfig(qwen3).headDim).toBe(128);
  expect(readConfig({ ...qwen3, head_dim: null }).headDim).toBe(64);
});

test("sliding windows", () => {
  const windows = (fields: object) => readConfig({ ...LLAMA, ...fields }).layerWindows;
  expect(windows({ sliding_window: 4096 })).toEqual([4096, 4096, 4096, 4096]);
  expect(windows({ sliding_window: 4096, use_sliding_window: false })).toEqual([0, 0, 0, 0]);
  const qwen2 = { sliding_window: 64, architectures: ["Qwen2ForCausalLM"] };
  expect(windows(qwen2)).toEqual([0, 0, 0, 0]);
  expect(windows({ ...qwen2, use_sliding_window: true })).toEqual([0, 0, 0, 0]);
  const qwen = { ...qwen2, use_sliding_window: true, max_window_layers: 3 };
  expect(windows(qwen)).toEqual([0, 0, 0, 64]);
  const [full, sliding] = ["full_attention", "sliding_attention"];
  expect(windows({ ...qwen, layer_types: [sliding, full, sliding, full] })).toEqual([64, 0, 64, 0]);
  expect(windows({ layer_types: [full, full, full, full] })).toEqual([0, 0, 0, 0]);
  const smollm3 = { architectures: ["SmolLM3ForCausalLM"], sliding_window: 64, use_sliding_window: true };
  expect(windows({ ...smollm3, no_rope_layers: [1, 0, 0, 1] })).toEqual([0, 64, 64, 0]);
  // Not a field of this family, whose published configs have it nevertheless.
  expect(windows({ ...smollm3, max_window_layers: 28 })).toEqual([0, 0, 0, 64]);
});

test.each([
  ["LlavaOnevision", "qwen2", [false, true], true],
  ["Mistral3", "mistral", [true, false], false],
  ["Mistral3", "mistral", [true, undefined], true],
  ["Qwen3VL", "qwen3_vl_text", [false, true], false],
] as const)("%s around %s, heads tied %j: %p", (name, model_type, [whole, text], isTied) => {
  const { architectures: _, tie_word_embeddings, ...rest } = LLAMA;
  const text_config = { ...rest, model_type, tie_word_embeddings: text };
  const architectures = [`${name}ForConditionalGeneration`];
  const config = readConfig({ architectures, tie_word_embeddings: whole, text_config });
  expect(config.tieWordEmbeddings).toBe(isTied);
});

test("as many layers and heads as a file may have would be a long list of parts", () => {
  const many = { ...LLAMA, num_hidden_layers: 1024, num_attention_heads: 256 };
  expect(() => readConfig(many)).toThrow(/num_attention_heads must be an integer from 1 to 128/);
});

test.each([
  ["vocab_size", 0],
  ["vocab_size", 1e12],
  ["hidden_size", 1_000_001],
  ["hidden_size", 4097],
  ["hidden_size", "4096"],
  ["hidden_size", -4096],
  ["hidden_size", 4096.5],
  ["intermediate_size", 1e12],
  ["num_hidden_layers", 1e6],
  ["num_attention_heads", 0],
  ["num_key_value_heads", 7],
  ["num_key_value_heads", 64],
  ["head_dim", 63],
  ["head_dim", 0],
  ["max_position_embeddings", 2 ** 40],
  ["rms_norm_eps", -1],
  ["rope_theta", 0],
  ["partial_rotary_factor", 2],
  ["partial_rotary_factor", 0.001],
  ["rope_scaling", "linear"],
  ["rope_scaling", { type: "linear" }],
  ["rope_scaling", { type: "linear", factor: 0.5 }],
  ["rope_scaling", { type: "llama3", ...LLAMA3_SCALING, high_freq_factor: 1 }],
  ["rope_parameters", []],
  ["tie_word_embeddings", "false"],
  ["eos_token_id", 128256],
  ["eos_token_id", [1, -1]],
  ["eos_token_id", Array.from({ length: 513 }, (_, i) => i)],
  ["architectures", []],
  ["architectures", "LlamaForCausalLM"],
  ["layer_types", ["full_attention"]],
  ["layer_types", new Array(4).fill("sliding_attention")],
])("%s = %j is refused", (name, value) => {
  const error = thrown(() => readConfig({ ...LLAMA, [name as string]: value }));
  expect(error).toBeInstanceOf(ModelDataError);
  expect(error).not.toBeInstanceOf(UnsupportedModelError);
  expect((error as Error).message).toContain("config.json: ");
  expect((error as Error).message).not.toContain("\n");
});

test.each([
  ["quantization_config", { quant_method: "bitsandbytes", load_in_4bit: true }, "bitsandbytes"],
  ["rope_scaling", { rope_type: "xpos", factor: 2 }, "xpos"],
  ["rope_scaling", { type: "mrope", mrope_section: [1, 2] }, "mrope"],
  ["hidden_act", "relu2", "relu2"],
  ["dtype", "float8_e4m3fn", "float8_e4m3fn"],
  ["layer_types", new Array(4).fill("linear_attention"), "linear_attention"],
  ["dual_chunk_attention_config", { chunk_size: 262144 }, "dual_chunk_attention_config"],
  ["attn_logit_softcapping", 50, "attn_logit_softcapping"],
  ["embedding_multiplier", 12, "embedding_multiplier"],
  ["num_local_experts", 8, "num_local_experts"],
  ["no_rope_layers", [1, 1, 1, 0], "no_rope_layers"],
])("%s = %j is unsupported", (name, value, message) => {
  const error = thrown(() => readConfig({ ...LLAMA, [name]: value }));
  expect(error).toBeInstanceOf(UnsupportedModelError);
  expect((error as Error).message).toContain(message);
});

test("fields of other families that change nothing are no reason to refuse", () => {
  const neutral = { dual_chunk_attention_config: null, logit_scale: 1, num_experts: 0, no_rope_layers: [] };
  expect(readConfig({ ...LLAMA, ...neutral, attn_logit_softcapping: false })).toEqual(readConfig(LLAMA));
});

test("the architecture must be there, and is what is looked at first", () => {
  expect(() => readConfig(without("architectures"))).toThrow("architectures must be");
  const other = {
    architectures: ["GPT2LMHeadModel"],
    quantization_config: { quant_method: "gptq" },
    vocab_size: "?",
  };
  const error = thrown(() => readConfig(other));
  expect(error).toBeInstanceOf(UnsupportedModelError);
  expect((error as Error).message).toMatch(/config\.json: architecture GPT2LMHeadModel .*Qwen3ForCausalLM/);
});

test("files that are no JSON objects, or not there", () => {
  const overflow = JSON.stringify(LLAMA).replace('"rope_theta":500000', '"rope_theta":1e999');
  const bad = ["", "{", "[]", "null", '{"a": NaN}', `${"[".repeat(200_000)}`, overflow];
  for (const text of bad) expect(thrown(() => readConfig(text))).toBeInstanceOf(ModelDataError);
  using folder = temporaryFolder();
  expect(thrown(() => readModelConfig(folder.path))).toBeInstanceOf(ModelNotFoundError);
  expect(thrown(() => readModelConfig(folder.file("none")))).toBeInstanceOf(ModelNotFoundError);
  expect(Bun.spawnSync(["mkfifo", folder.file("config.json")]).exitCode).toBe(0);
  expect(() => readModelConfig(folder.path)).toThrow("not a regular file");
  expect(() => readConfig('{"architectures":["X"],"text_config":{}}')).toThrow(UnsupportedModelError);
});
