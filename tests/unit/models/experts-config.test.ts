import { expect, setDefaultTimeout, test } from "bun:test";
import { ModelDataError, UnsupportedModelError } from "../../../src/base/errors.ts";
import { defineModel } from "../../../src/models/registry.ts";
import { thrown } from "../../support.ts";
import { readConfig } from "./read-config.ts";

setDefaultTimeout(300_000);

/** As the Hub has them, of two layers. */
const QWEN3_30B = {
  ...{
    architectures: ["Qwen3MoeForCausalLM"],
    model_type: "qwen3_moe",
    vocab_size: 151936,
    hidden_size: 2048,
  },
  ...{ intermediate_size: 6144, num_hidden_layers: 2, num_attention_heads: 32, num_key_value_heads: 4 },
  ...{
    head_dim: 128,
    hidden_act: "silu",
    max_position_embeddings: 40960,
    rms_norm_eps: 1e-6,
    rope_theta: 1e6,
  },
  ...{ moe_intermediate_size: 768, num_experts: 128, num_experts_per_tok: 8, norm_topk_prob: true },
  ...{ decoder_sparse_step: 1, mlp_only_layers: [], use_sliding_window: false, max_window_layers: 48 },
  ...{ sliding_window: null, tie_word_embeddings: false, torch_dtype: "bfloat16" },
};
const QWEN15_A27B = {
  ...{
    architectures: ["Qwen2MoeForCausalLM"],
    model_type: "qwen2_moe",
    vocab_size: 151936,
    hidden_size: 2048,
  },
  ...{ intermediate_size: 5632, num_hidden_layers: 2, num_attention_heads: 16, num_key_value_heads: 16 },
  ...{ hidden_act: "silu", max_position_embeddings: 8192, num_experts: 60, num_experts_per_tok: 4 },
  ...{ moe_intermediate_size: 1408, shared_expert_intermediate_size: 5632, norm_topk_prob: false },
};
const MIXTRAL = {
  ...{ architectures: ["MixtralForCausalLM"], model_type: "mixtral", vocab_size: 32000, hidden_size: 4096 },
  ...{ intermediate_size: 14336, num_hidden_layers: 2, num_attention_heads: 32, num_key_value_heads: 8 },
  ...{ hidden_act: "silu", max_position_embeddings: 32768, num_local_experts: 8, num_experts_per_tok: 2 },
};

test("experts of published models", () => {
  expect(readConfig(QWEN3_30B).experts).toEqual({
    ...{ count: 128, perToken: 8, intermediateSize: 768, sharedIntermediateSize: 0 },
    ...{ softmaxOver: "chosen", layers: [true, true], areBesideDense: false },
  });
  expect(readConfig(QWEN15_A27B).experts).toEqual({
    ...{ count: 60, perToken: 4, intermediateSize: 1408, sharedIntermediateSize: 5632 },
    ...{ softmaxOver: "all", layers: [true, true], areBesideDense: false },
  });
  expect(readConfig(MIXTRAL).experts).toEqual({
    ...{ count: 8, perToken: 2, intermediateSize: 14336, sharedIntermediateSize: 0 },
    ...{ softmaxOver: "chosen", layers: [true, true], areBesideDense: false },
  });
});

test("transformers 5's name of their number, and layers without experts", () => {
  const { num_experts, ...rest } = QWEN3_30B;
  const named = { ...rest, num_local_experts: num_experts, num_hidden_layers: 6 };
  expect(readConfig({ ...named, decoder_sparse_step: 2, mlp_only_layers: [3] }).experts).toMatchObject({
    ...{ count: 128, layers: [false, true, false, false, false, true] },
  });
});

test("what their families have otherwise than dense ones", () => {
  const { rms_norm_eps: _, ...silent } = QWEN3_30B;
  expect(readConfig(silent).rmsNormEps).toBe(1e-6);
  expect(readConfig(MIXTRAL).rmsNormEps).toBe(1e-5);
  expect(readConfig({ ...MIXTRAL, architectures: ["GptOssForCausalLM"] }).rmsNormEps).toBe(1e-5);
  const windowed = { use_sliding_window: true, sliding_window: 64, max_window_layers: 1 };
  expect(readConfig({ ...QWEN3_30B, ...windowed }).layerWindows).toEqual([64, 64]);
  const error = thrown(() => readConfig({ ...QWEN15_A27B, ...windowed }));
  expect(error).toBeInstanceOf(UnsupportedModelError);
  expect((error as Error).message).toContain("use_sliding_window without layer_types");
  const layer_types = ["sliding_attention", "full_attention"];
  expect(readConfig({ ...QWEN15_A27B, ...windowed, layer_types }).layerWindows).toEqual([64, 0]);
  expect(readConfig(QWEN15_A27B).attentionBias).toBeUndefined();
  const biases = (config: object) =>
    defineModel(readConfig(config))
      .parameters.flatMap(({ sources }) => sources.map(({ name }) => name))
      .filter((name) => name.endsWith("_proj.bias"));
  expect(biases(QWEN15_A27B)).toHaveLength(6);
  expect(biases({ ...QWEN15_A27B, qkv_bias: false })).toEqual([]);
});

test("the tensors that they are made of have the names of the Hub", () => {
  const namesOf = (config: object) =>
    new Set(
      defineModel(readConfig(config)).parameters.flatMap(({ sources }) => sources.map(({ name }) => name)),
    );
  const qwen3 = namesOf(QWEN3_30B);
  for (const part of ["gate", "experts.127.gate_proj", "experts.0.up_proj", "experts.64.down_proj"])
    expect(qwen3).toContain(`model.layers.1.mlp.${part}.weight`);
  const qwen2 = namesOf(QWEN15_A27B);
  for (const part of ["gate", "experts.59.up_proj", "shared_expert.down_proj", "shared_expert_gate"])
    expect(qwen2).toContain(`model.layers.1.mlp.${part}.weight`);
  const mixtral = namesOf(MIXTRAL);
  for (const part of ["gate", "experts.7.w1", "experts.0.w3", "experts.3.w2"])
    expect(mixtral).toContain(`model.layers.0.block_sparse_moe.${part}.weight`);
});

test.each([
  [{ num_experts: 0 }, /num_experts/],
  // 2^18 experts of all layers: each would have matrices of its own.
  [{ num_experts: 256, num_hidden_layers: 1024 }, /num_experts must be an integer from 1 to 64/],
  [{ num_experts_per_tok: 129 }, /num_experts_per_tok/],
  [{ mlp_only_layers: ["x"] }, /mlp_only_layers/],
  [{ decoder_sparse_step: 0 }, /decoder_sparse_step/],
])("%j is refused", (change, message) => {
  const error = thrown(() => readConfig({ ...QWEN3_30B, ...change }));
  expect(error).toBeInstanceOf(ModelDataError);
  expect((error as Error).message).toMatch(message);
});

test("a dense family with experts is refused, and ranks that do not divide an expert", () => {
  const dense = { ...QWEN3_30B, architectures: ["Qwen3ForCausalLM"] };
  expect(thrown(() => readConfig(dense))).toBeInstanceOf(UnsupportedModelError);
  const odd = readConfig({ ...QWEN3_30B, moe_intermediate_size: 767 });
  expect(() => defineModel(odd, { shard: { rank: 0, size: 2 } })).toThrow(/767 intermediate dimensions/);
});
