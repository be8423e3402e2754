import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { ModelDataError, ModelNotFoundError, UnsupportedModelError } from "../../../src/base/errors.ts";
import { type ModelConfig, readModelConfig } from "../../../src/models/config.ts";
import { readGenerationConfig } from "../../../src/models/generation-config.ts";
import { temporaryFolder, thrown } from "../../support.ts";

setDefaultTimeout(300_000);

const LLAMA = {
  architectures: ["LlamaForCausalLM"],
  model_type: "llama",
  auto_map: { AutoModel: "evil.Model" },
  vocab_size: 128256,
  hidden_size: 4096,
  intermediate_size: 14336,
  num_hidden_layers: 4,
  num_attention_heads: 32,
  num_key_value_heads: 8,
  hidden_act: "silu",
  max_position_embeddings: 131072,
  rms_norm_eps: 1e-5,
  rope_theta: 500000,
  attention_bias: false,
  mlp_bias: false,
  tie_word_embeddings: false,
  bos_token_id: 128000,
  eos_token_id: [128001, 128008, 128009],
  torch_dtype: "bfloat16",
};
const LLAMA3_SCALING = {
  factor: 8,
  low_freq_factor: 1,
  high_freq_factor: 4,
  original_max_position_embeddings: 8192,
};

function read(config: unknown): ModelConfig {
  using folder = temporaryFolder();
  writeFileSync(folder.file("config.json"), typeof config === "string" ? config : JSON.stringify(config));
  return readModelConfig(folder.path);
}

function without(...names: string[]): Record<string, unknown> {
  return Object.fromEntries(Object.entries(LLAMA).filter(([name]) => !names.includes(name)));
}

describe("readModelConfig", () => {
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
    const old = read({ ...LLAMA, rope_scaling: { rope_type: "llama3", ...LLAMA3_SCALING } });
    const older = read({ ...LLAMA, rope_scaling: { type: "llama3", ...LLAMA3_SCALING } });
    const rope_parameters = { rope_type: "llama3", rope_theta, ...LLAMA3_SCALING };
    const recent = read({ ...common, dtype: torch_dtype, rope_parameters });
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
    const config = read({
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
    expect(read({ architectures: [architecture] })).toMatchObject({
      ...common,
      ...sizes,
      ...others,
    } as never);
  });

  test("null is not silence", () => {
    const mistral = { ...LLAMA, architectures: ["MistralForCausalLM"] };
    expect(
      read({ ...mistral, num_key_value_heads: null, sliding_window: null, eos_token_id: null }),
    ).toMatchObject({
      numKvHeads: 32,
      layerWindows: [0, 0, 0, 0],
      eosTokenIds: [],
    });
    const qwen3 = { ...LLAMA, architectures: ["Qwen3ForCausalLM"], hidden_size: 2048 };
    expect(read(qwen3).headDim).toBe(128);
    expect(read({ ...qwen3, head_dim: null }).headDim).toBe(64);
  });

  test("YaRN's positions are those that it stretches training to", () => {
    const positions = (fields: object) => read({ ...LLAMA, ...fields }).maxPositionEmbeddings;
    const yarn = { rope_type: "yarn", factor: 4, original_max_position_embeddings: 32768 };
    expect(positions({ max_position_embeddings: 32768, rope_scaling: yarn })).toBe(131072);
    expect(positions({ max_position_embeddings: 40960, rope_parameters: yarn })).toBe(131072);
    expect(positions({ max_position_embeddings: 262144, rope_scaling: yarn })).toBe(262144);
    expect(positions({ max_position_embeddings: 8192, rope_scaling: { type: "yarn", factor: 2 } })).toBe(
      16384,
    );
    const older = { original_max_position_embeddings: 4096, rope_scaling: { type: "yarn", factor: 2 } };
    expect(positions({ max_position_embeddings: 1024, ...older })).toBe(8192);
    expect(positions({ max_position_embeddings: 4096, rope_scaling: { type: "linear", factor: 4 } })).toBe(
      4096,
    );
  });

  test("longrope, dynamic and proportional rope", () => {
    const factors = (last: number) => Array.from({ length: 48 }, (_, i) => 1 + (last * i) / 47);
    const lists = { short_factor: factors(1), long_factor: factors(40) };
    const phi = { head_dim: 128, partial_rotary_factor: 0.75, original_max_position_embeddings: 4096 };
    const longrope = (fields: object) =>
      read({ ...LLAMA, ...phi, rope_scaling: { type: "longrope", ...lists, ...fields } }).layerRopes[0]!
        .scaling;
    const common = { kind: "longrope", shortFactors: factors(1), longFactors: factors(40) };
    const original = { originalMaxPositionEmbeddings: 4096 };
    expect(longrope({})).toEqual({ ...common, ...original, attentionFactor: 1.1902380714238083 } as never);
    for (const type of ["su", "yarn"]) expect(longrope({ type })).toEqual(longrope({}));
    expect(longrope({ attention_factor: 1.5 })).toMatchObject({ attentionFactor: 1.5 });
    expect(longrope({ factor: 1 })).toMatchObject({ attentionFactor: 1 });
    for (const [name, list] of [
      ["short_factor", factors(1).slice(1)],
      ["long_factor", [...factors(40), 1]],
      ["long_factor", "none"],
      ["short_factor", [...factors(1).slice(1), 0]],
    ] as const)
      expect(() => longrope({ [name]: list })).toThrow(`rope_scaling.${name} must be a list of`);

    const dynamic = read({
      ...LLAMA,
      max_position_embeddings: 2048,
      rope_scaling: { type: "dynamic", factor: 4 },
    });
    expect(dynamic.layerRopes[0]!.scaling).toEqual({
      ...{ kind: "dynamic", factor: 4, originalMaxPositionEmbeddings: 2048 },
    });
    expect(dynamic.maxPositionEmbeddings).toBe(8192);
    const rope_parameters = { rope_type: "proportional", rope_theta: 1e6, partial_rotary_factor: 0.25 };
    const { rope_theta: _, ...silent } = LLAMA;
    expect(read({ ...silent, rope_parameters }).layerRopes[0]!).toEqual({
      ...{ theta: 1e6, partialRotaryFactor: 0.25, scaling: { kind: "proportional", factor: 1 } },
    });
    const yarn = { rope_type: "yarn", factor: 32, truncate: false };
    expect(read({ ...LLAMA, rope_scaling: yarn }).layerRopes[0]!.scaling).toMatchObject({ truncate: false });
  });

  test("ropes that differ between layers", () => {
    const types = {
      layer_types: ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    };
    const { rope_theta: _, ...silent } = { ...LLAMA, ...types, sliding_window: 1024 };
    const rope_parameters = {
      full_attention: { rope_type: "linear", rope_theta: 1e6, factor: 8 },
      sliding_attention: { rope_type: "default", rope_theta: 1e4 },
    };
    const recent = read({ ...silent, rope_parameters });
    const [sliding, full] = recent.layerRopes;
    expect(sliding).toEqual({ theta: 1e4, partialRotaryFactor: 1, scaling: { kind: "none" } });
    expect(full).toEqual({ theta: 1e6, partialRotaryFactor: 1, scaling: { kind: "linear", factor: 8 } });
    // What is the same is one object.
    expect(recent.layerRopes[2]).toBe(sliding!);
    expect(recent.layerRopes[3]).toBe(full!);
    const rope_scaling = { rope_type: "linear", factor: 8 };
    const old = read({ ...silent, rope_theta: 1e6, rope_local_base_freq: 1e4, rope_scaling });
    expect(old.layerRopes).toEqual(recent.layerRopes);
  });

  test("scaling of queries by position", () => {
    const scaling = {
      rope_type: "default",
      llama_4_scaling_beta: 0.1,
      original_max_position_embeddings: 16384,
    };
    const queryScaling = { beta: 0.1, originalMaxPositionEmbeddings: 16384 };
    expect(read({ ...LLAMA, rope_parameters: scaling })).toMatchObject({ queryScaling });
    expect(read({ ...LLAMA, rope_scaling: scaling })).toMatchObject({ queryScaling });
    expect(read(LLAMA).queryScaling).toBeUndefined();
  });

  test("rope scaling", () => {
    const scaling = (rope_scaling: object) => read({ ...LLAMA, rope_scaling }).layerRopes[0]!.scaling;
    expect(scaling({ type: "linear", factor: 2.5 })).toEqual({ kind: "linear", factor: 2.5 });
    expect(scaling({ rope_type: "default" })).toEqual({ kind: "none" });
    const yarn = { rope_type: "yarn", factor: 4, original_max_position_embeddings: 32768 };
    const common = {
      kind: "yarn",
      factor: 4,
      betaFast: 32,
      betaSlow: 1,
      originalMaxPositionEmbeddings: 32768,
      truncate: true,
    };
    expect(scaling(yarn)).toEqual({ ...common, attentionFactor: 0.1 * Math.log(4) + 1 } as never);
    expect(scaling({ ...yarn, mscale: 1, mscale_all_dim: 1 })).toEqual({
      ...common,
      attentionFactor: 1,
    } as never);
    expect(scaling({ ...yarn, attention_factor: 1.5 })).toEqual({ ...common, attentionFactor: 1.5 } as never);
    expect(read({ ...LLAMA, partial_rotary_factor: 0.5 }).layerRopes[0]!.partialRotaryFactor).toBe(0.5);
    const rope_parameters = { rope_theta: 7, partial_rotary_factor: 0.25 };
    expect(read({ ...LLAMA, rope_parameters }).layerRopes[0]).toMatchObject({
      theta: 7,
      partialRotaryFactor: 0.25,
    });
    const both = { rope_scaling: { type: "linear", factor: 2 }, rope_parameters };
    expect(read({ ...LLAMA, ...both }).layerRopes[0]).toMatchObject({
      theta: 500000,
      scaling: { kind: "linear" },
    });
    expect(read({ ...LLAMA, ...both, rope_scaling: {} }).layerRopes[0]!.theta).toBe(7);
    const { factor, ...stretched } = yarn;
    expect(scaling(stretched)).toMatchObject({ kind: "yarn", factor: 131072 / 32768 });
    const { original_max_position_embeddings, ...silent } = LLAMA3_SCALING;
    expect(scaling({ rope_type: "llama3", ...silent })).toMatchObject({
      originalMaxPositionEmbeddings: 131072,
    });
  });

  test("sliding windows", () => {
    const windows = (fields: object) => read({ ...LLAMA, ...fields }).layerWindows;
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
    const config = read({ architectures, tie_word_embeddings: whole, text_config });
    expect(config.tieWordEmbeddings).toBe(isTied);
  });

  test("as many layers and heads as a file may have would be a long list of parts", () => {
    const many = { ...LLAMA, num_hidden_layers: 1024, num_attention_heads: 256 };
    expect(() => read(many)).toThrow(/num_attention_heads must be an integer from 1 to 128/);
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
    const error = thrown(() => read({ ...LLAMA, [name as string]: value }));
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
    const error = thrown(() => read({ ...LLAMA, [name]: value }));
    expect(error).toBeInstanceOf(UnsupportedModelError);
    expect((error as Error).message).toContain(message);
  });

  test("fields of other families that change nothing are no reason to refuse", () => {
    const neutral = { dual_chunk_attention_config: null, logit_scale: 1, num_experts: 0, no_rope_layers: [] };
    expect(read({ ...LLAMA, ...neutral, attn_logit_softcapping: false })).toEqual(read(LLAMA));
  });

  test("the architecture must be there, and is what is looked at first", () => {
    expect(() => read(without("architectures"))).toThrow("architectures must be");
    const other = {
      architectures: ["GPT2LMHeadModel"],
      quantization_config: { quant_method: "gptq" },
      vocab_size: "?",
    };
    const error = thrown(() => read(other));
    expect(error).toBeInstanceOf(UnsupportedModelError);
    expect((error as Error).message).toMatch(/config\.json: architecture GPT2LMHeadModel .*Qwen3ForCausalLM/);
  });

  test("files that are no JSON objects, or not there", () => {
    const overflow = JSON.stringify(LLAMA).replace('"rope_theta":500000', '"rope_theta":1e999');
    const bad = ["", "{", "[]", "null", '{"a": NaN}', `${"[".repeat(200_000)}`, overflow];
    for (const text of bad) expect(thrown(() => read(text))).toBeInstanceOf(ModelDataError);
    using folder = temporaryFolder();
    expect(thrown(() => readModelConfig(folder.path))).toBeInstanceOf(ModelNotFoundError);
    expect(thrown(() => readModelConfig(folder.file("none")))).toBeInstanceOf(ModelNotFoundError);
    expect(Bun.spawnSync(["mkfifo", folder.file("config.json")]).exitCode).toBe(0);
    expect(() => readModelConfig(folder.path)).toThrow("not a regular file");
    expect(() => read('{"architectures":["X"],"text_config":{}}')).toThrow(UnsupportedModelError);
  });
});

describe("readGenerationConfig", () => {
  const model = read(LLAMA);
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
});
