import { expect, setDefaultTimeout, test } from "bun:test";
import { ConfigError, ModelDataError, UnsupportedModelError } from "../../../src/base/errors.ts";
import type { ModelConfig } from "../../../src/models/config.ts";
import { defineModel } from "../../../src/models/registry.ts";
import { readConfig } from "./read-config.ts";

setDefaultTimeout(300_000);

const QWEN3_5 = {
  ...{ architectures: ["Qwen3_5ForCausalLM"], model_type: "qwen3_5_text", vocab_size: 64, hidden_size: 32 },
  ...{ num_hidden_layers: 8, intermediate_size: 48, num_attention_heads: 4, num_key_value_heads: 2 },
};

function read(fields: Record<string, unknown> = {}): ModelConfig {
  return readConfig({ ...QWEN3_5, ...fields });
}

test("a config that says nothing has every fourth layer with attention, of which a part of each head turns", () => {
  const { linearAttention, layerRopes, headDim } = read();
  expect(linearAttention).toMatchObject({
    ...{ numKeyHeads: 16, numValueHeads: 32, keyDim: 128, valueDim: 128, convWidth: 4 },
    layers: [true, true, true, false, true, true, true, false],
  });
  expect([headDim, layerRopes[3]!.partialRotaryFactor]).toEqual([256, 0.25]);
});

test("blocks are of the layers with attention, states of the others", () => {
  const whole = defineModel(read());
  expect(whole.cachedLayers).toEqual(Array(2).fill({ numKvHeads: 2, headDim: 256, window: 0 }));
  expect(whole.stateShape).toMatchObject({ numLayers: 6, numKeyHeads: 16, numValueHeads: 32 });
  const part = defineModel(read(), { shard: { rank: 1, size: 4 } });
  expect(part.stateShape).toMatchObject({ numLayers: 6, numKeyHeads: 4, numValueHeads: 8 });
});

test("ranks divide key heads", () => {
  const odd = read({ linear_num_key_heads: 3, linear_num_value_heads: 6 });
  expect(() => defineModel(odd, { shard: { rank: 0, size: 2 } })).toThrow(ConfigError);
  expect(() => defineModel(odd, { shard: { rank: 0, size: 2 } })).toThrow("3 key heads of linear attention");
});

test.each([
  [{ linear_num_value_heads: 20 }, ModelDataError, "a multiple of 16 key heads"],
  [{ layer_types: ["linear_attention"] }, ModelDataError, "a list of 8 types"],
  [{ layer_types: Array(8).fill("sliding_attention") }, UnsupportedModelError, "sliding_attention"],
  [{ full_attention_interval: 9 }, UnsupportedModelError, "without any layer of full attention"],
  [{ attn_output_gate: false }, UnsupportedModelError, "attn_output_gate"],
  [{ hidden_act: "gelu" }, UnsupportedModelError, "hidden_act"],
] as const)("%o is refused", (fields, error, message) => {
  expect(() => read(fields)).toThrow(error);
  expect(() => read(fields)).toThrow(message);
});
