import { expect, setDefaultTimeout, test } from "bun:test";
import { ConfigError, ModelDataError, UnsupportedModelError } from "../../../src/base/errors.ts";
import { attentionFormsOf } from "../../../src/models/attention-forms.ts";
import type { ModelConfig } from "../../../src/models/config.ts";
import { defineModel } from "../../../src/models/registry.ts";
import { readConfig } from "./read-config.ts";

setDefaultTimeout(300_000);

const GEMMA4 = {
  ...{ architectures: ["Gemma4ForCausalLM"], model_type: "gemma4_text", vocab_size: 64, hidden_size: 32 },
  ...{ num_hidden_layers: 6, intermediate_size: 48, num_attention_heads: 8, num_key_value_heads: 4 },
  ...{ vocab_size_per_layer_input: 64, sliding_window: 16 },
};

function read(fields: Record<string, unknown> = {}): ModelConfig {
  return readConfig({ ...GEMMA4, ...fields });
}

const heads = (numKvHeads: number, headDim: number) => ({ numKvHeads, headDim });
const TYPES = ["sliding_attention", "full_attention"];

test("a config that says nothing has transformers' defaults", () => {
  const { layerWindows, layerKvHeads, layerRopes, kvSources, gemma4, attentionScale, experts } = read();
  expect(layerWindows).toEqual([16, 16, 16, 16, 16, 0]);
  expect(layerKvHeads[0]).toEqual(heads(4, 256));
  expect(layerKvHeads[5]).toEqual(heads(4, 512));
  expect(layerRopes[0]).toMatchObject({ theta: 10_000, scaling: { kind: "none" } });
  expect(layerRopes[5]).toMatchObject({ theta: 1_000_000, partialRotaryFactor: 0.25 });
  expect(layerRopes[5]!.scaling).toEqual({ kind: "proportional", factor: 1 });
  expect(kvSources).toEqual([0, 1, 2, 3, 4, 5]);
  expect(gemma4).toMatchObject({ keysAreValues: false, perLayerInputSize: 256 });
  expect([attentionScale, experts]).toEqual([1, undefined]);
  expect(read({ hidden_size_per_layer_input: null }).gemma4!.perLayerInputSize).toBe(0);
});

test("the last layer has no window, whatever its type", () => {
  expect(read({ layer_types: Array(6).fill("sliding_attention") }).layerWindows).toEqual([
    16, 16, 16, 16, 16, 0,
  ]);
});

test("heads without a window: by the Hub's fields, and as transformers writes them", () => {
  const published = read({ global_head_dim: 64, num_global_key_value_heads: 2, attention_k_eq_v: true });
  const written = read({
    attention_k_eq_v: true,
    per_layer_config: { 5: { head_dim: 64, num_key_value_heads: 2 } },
  });
  for (const { layerKvHeads } of [published, written])
    expect(layerKvHeads).toEqual([...Array(5).fill(heads(4, 256)), heads(2, 64)]);
  // Fewer heads go with values that are keys.
  expect(read({ global_head_dim: 64, num_global_key_value_heads: 2 }).layerKvHeads[5]).toEqual(heads(4, 64));
});

test("layers share keys and values of the last layer of their type that has any", () => {
  const config = read({
    ...{ num_hidden_layers: 8, layer_types: Array(4).fill(TYPES).flat() },
    ...{ num_kv_shared_layers: 3, use_double_wide_mlp: true, global_head_dim: 64 },
  });
  expect(config.kvSources).toEqual([0, 1, 2, 3, 4, 3, 4, 3]);
  expect(config.gemma4!.doubleWide).toEqual([...Array(5).fill(false), true, true, true]);
  const { cachedLayers, parameters } = defineModel(config);
  expect(cachedLayers).toMatchObject([256, 64, 256, 64, 256].map((headDim) => heads(4, headDim)));
  const shape = (name: string) => parameters.find((spec) => spec.name === name)!.shape;
  expect(shape("layers.4.attention.qkv.weight")).toEqual([(8 + 8) * 256, 32]);
  expect(shape("layers.6.attention.qkv.weight")).toEqual([8 * 256, 32]);
  expect(shape("layers.7.mlp.gateUp.weight")).toEqual([2 * 96, 32]);
  expect(attentionFormsOf(config, { rank: 0, size: 2 })).toMatchObject([
    { rotaryDim: 256, normsValues: true, readsOnly: false },
    { rotaryDim: 64, normsValues: true, readsOnly: false, kvHeads: heads(2, 64) },
    { rotaryDim: 64, normsValues: false, readsOnly: true, kvHeads: heads(2, 64) },
    { rotaryDim: 256, normsValues: false, readsOnly: true },
  ]);
});

test("values that are keys are loaded from the same tensor", () => {
  const config = read({ attention_k_eq_v: true, num_global_key_value_heads: 2, global_head_dim: 64 });
  const { parameters } = defineModel(config);
  const sources = (layer: number) =>
    parameters
      .find(({ name }) => name === `layers.${layer}.attention.qkv.weight`)!
      .sources.map(({ name }) => /(\w)_proj/.exec(name)![1]);
  expect([sources(0), sources(5)]).toEqual([
    ["q", "k", "v"],
    ["q", "k", "k"],
  ]);
});

test("experts beside a dense block, where the config has the block", () => {
  const fields = {
    num_experts: 8,
    top_k_experts: 2,
    moe_intermediate_size: 16,
    hidden_size_per_layer_input: 0,
  };
  expect(read({ ...fields, enable_moe_block: false }).experts).toBeUndefined();
  const config = read({ ...fields, enable_moe_block: true });
  expect(config.experts).toMatchObject({ count: 8, perToken: 2, intermediateSize: 16, areBesideDense: true });
  // Ranks divide both.
  const odd = read({ ...fields, enable_moe_block: true, intermediate_size: 49 });
  expect(() => defineModel(odd, { shard: { rank: 0, size: 2 } })).toThrow(ConfigError);
});

test.each([
  [{ num_kv_shared_layers: 6 }, ModelDataError],
  [{ num_kv_shared_layers: 1 }, ModelDataError],
  [{ global_head_dim: 63 }, ModelDataError],
  [{ attention_k_eq_v: true, num_global_key_value_heads: 3 }, ModelDataError],
  [{ per_layer_config: { 2: { num_key_value_heads: 3 } } }, ModelDataError],
  [{ vocab_size_per_layer_input: 63 }, UnsupportedModelError],
  [{ use_bidirectional_attention: "all" }, UnsupportedModelError],
] as const)("%p is refused", (fields, error) => {
  expect(() => read(fields)).toThrow(error);
});

const ROPES = {
  full_attention: { rope_type: "proportional", partial_rotary_factor: 0.25, rope_theta: 1e6 },
  sliding_attention: { rope_type: "default", rope_theta: 1e4 },
};

test.each([
  // Layers of a type have one rope, and attend to each other's keys and values.
  [{ 0: { head_dim: 128 } }, ModelDataError, "per_layer_config must be the same for all layers of a type"],
  [{ 3: { num_key_value_heads: 2 } }, ModelDataError, "per_layer_config must be the same"],
  [{ 6: { head_dim: 64 } }, ModelDataError, "per_layer_config.6 must be of a layer from 0 to 5"],
  [{ last: { head_dim: 64 } }, ModelDataError, "per_layer_config.last must be"],
  [{ 5: { sliding_window: 8 } }, UnsupportedModelError, "per_layer_config.5.sliding_window of a layer"],
] as const)("layers %p: refused by the field's name", (per_layer_config, error, message) => {
  const fields = { layer_types: Array(3).fill(TYPES).flat(), per_layer_config };
  expect(() => read(fields)).toThrow(error);
  expect(() => read(fields)).toThrow(message);
});

test.each([
  [null, "rope_parameters must be an object"],
  [{}, "rope_parameters.sliding_attention must be an object, it is missing"],
  [{ rope_type: "default", rope_theta: 1e4 }, "rope_parameters.sliding_attention must be"],
  [{ sliding_attention: ROPES.sliding_attention }, "rope_parameters.full_attention must be"],
  [{ ...ROPES, full_attention: { rope_type: "proportional" } }, "full_attention.rope_theta must be a number"],
] as const)("ropes %p: refused by the field's name", (rope_parameters, message) => {
  expect(() => read({ rope_parameters })).toThrow(ModelDataError);
  expect(() => read({ rope_parameters })).toThrow(message);
  // Types that no layer has need none.
  const full = { layer_types: Array(6).fill("full_attention"), global_head_dim: 256 };
  const { full_attention } = ROPES;
  expect(read({ ...full, rope_parameters: { full_attention } }).layerRopes[0]!.theta).toBe(1e6);
});
