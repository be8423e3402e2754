import { expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type EngineOptions, resolveEngineConfig } from "../../../../src/base/config.ts";
import type { ResolvedSamplingParams } from "../../../../src/base/sampling-params.ts";
import { loadModel } from "../../../../src/llm/load-model.ts";
import { add, drain, makeRequest, range } from "../../engine/helpers.ts";
import { FakeMachine } from "./fake-machine.ts";
import { namedArguments } from "./kernel-signatures.ts";

setDefaultTimeout(300_000);

const SHAPE = {
  ...{ model_type: "llama", architectures: ["LlamaForCausalLM"], vocab_size: 2048, num_hidden_layers: 2 },
  ...{ hidden_size: 512, intermediate_size: 1024, rms_norm_eps: 1e-6, hidden_act: "silu" },
  ...{ num_attention_heads: 4, num_key_value_heads: 2, head_dim: 64, max_position_embeddings: 4096 },
  torch_dtype: "bfloat16",
};

/** Families, and sizes that lead to other kernels: tied heads, biases, norms of heads, heads, widths without vectors. */
const MODELS: Readonly<Record<string, object>> = {
  llama: SHAPE,
  "llama with a tied head": { ...SHAPE, tie_word_embeddings: true },
  "qwen3, 128 dimensions": {
    ...SHAPE,
    model_type: "qwen3",
    architectures: ["Qwen3ForCausalLM"],
    head_dim: 128,
  },
  "qwen2, one KV head": {
    ...SHAPE,
    model_type: "qwen2",
    architectures: ["Qwen2ForCausalLM"],
    num_key_value_heads: 1,
  },
  "mistral, sliding window": {
    ...{ ...SHAPE, model_type: "mistral", architectures: ["MistralForCausalLM"], sliding_window: 64 },
  },
  "qwen3 with experts": {
    ...{ ...SHAPE, model_type: "qwen3_moe", architectures: ["Qwen3MoeForCausalLM"], head_dim: 128 },
    ...{ num_experts: 8, num_experts_per_tok: 2, moe_intermediate_size: 128 },
  },
  "qwen2 with a shared expert": {
    ...{ ...SHAPE, model_type: "qwen2_moe", architectures: ["Qwen2MoeForCausalLM"], num_experts: 4 },
    ...{ num_experts_per_tok: 2, moe_intermediate_size: 64, shared_expert_intermediate_size: 256 },
  },
  "qwen3.5, linear attention": {
    ...{
      ...SHAPE,
      model_type: "qwen3_5_text",
      architectures: ["Qwen3_5ForCausalLM"],
      full_attention_interval: 2,
    },
    ...{
      linear_num_key_heads: 2,
      linear_num_value_heads: 4,
      linear_key_head_dim: 64,
      linear_value_head_dim: 64,
    },
  },
  "256 dimensions": { ...SHAPE, head_dim: 256 },
  "widths of 8": { ...SHAPE, hidden_size: 264, intermediate_size: 520, vocab_size: 2001 },
  "gemma 3, GELU and norms of outputs": {
    ...{ ...SHAPE, model_type: "gemma3_text", architectures: ["Gemma3ForCausalLM"] },
    ...{ hidden_activation: "gelu_pytorch_tanh", sliding_window: 64, sliding_window_pattern: 2 },
  },
  ...gemma4(),
  "odd widths": { ...SHAPE, hidden_size: 513, intermediate_size: 1001, vocab_size: 2001 },
};
/** Gemma 4 with all that it may have: two sizes of heads, shared keys and values, inputs of each layer's own, experts. */
function gemma4(): Readonly<Record<string, object>> {
  const shape = {
    ...{ ...SHAPE, model_type: "gemma4_text", architectures: ["Gemma4ForCausalLM"], num_hidden_layers: 4 },
    ...{ hidden_activation: "gelu_pytorch_tanh", head_dim: 64, global_head_dim: 512, sliding_window: 64 },
    ...{ num_key_value_heads: 1, num_global_key_value_heads: 1, final_logit_softcapping: 30 },
    tie_word_embeddings: true,
    layer_types: ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    rope_parameters: {
      full_attention: { rope_type: "proportional", rope_theta: 1e6, partial_rotary_factor: 0.25 },
      sliding_attention: { rope_type: "default", rope_theta: 1e4 },
    },
  };
  return {
    "gemma 4, shared keys and inputs of layers": {
      ...{ ...shape, num_kv_shared_layers: 2, use_double_wide_mlp: true, enable_moe_block: false },
      ...{ hidden_size_per_layer_input: 32, vocab_size_per_layer_input: 2048 },
    },
    "gemma 4 with experts": {
      ...{ ...shape, num_kv_shared_layers: 0, hidden_size_per_layer_input: 0, attention_k_eq_v: true },
      ...{ enable_moe_block: true, num_experts: 8, top_k_experts: 2, moe_intermediate_size: 64 },
    },
  };
}
const CAPABILITIES = [
  [8, 0],
  [9, 0],
  [12, 0],
] as const;
const OPTIONS: EngineOptions = {
  ...{ device: "cuda", loadFormat: "dummy", skipTokenizerInit: true, maxNumSeqs: 40 },
  ...{ maxNumBatchedTokens: 512, maxModelLen: 1024, kvCacheMemoryBytes: 2 ** 26 },
};

/** Everything that a request may ask for. */
const ASKED: readonly Partial<ResolvedSamplingParams>[] = [
  {},
  { temperature: 1 },
  { temperature: 0.7, topK: 20, topP: 0.9, minP: 0.1 },
  { temperature: 1, presencePenalty: 0.5, frequencyPenalty: 0.5, repetitionPenalty: 1.2 },
  { logprobs: 3 },
  { promptLogprobs: 2 },
  { logitBias: [[3, 2]] },
];

/** Quantised matrices, with a head in floats or not. */
const QUANTISED: Readonly<Record<string, object>> = {
  "FP8 by channels": { ...SHAPE, quantization_config: { quant_method: "fp8" } },
  "FP8 in blocks": { ...SHAPE, quantization_config: { quant_method: "fp8", weight_block_size: [128, 128] } },
  AWQ: { ...SHAPE, quantization_config: { quant_method: "awq", bits: 4, group_size: 128, zero_point: true } },
  "AWQ, with experts": {
    ...(MODELS["qwen3 with experts"] as object),
    quantization_config: { quant_method: "awq", bits: 4, group_size: 64, zero_point: true },
  },
  "FP8, with experts": {
    ...(MODELS["qwen3 with experts"] as object),
    quantization_config: { quant_method: "fp8", weight_block_size: [128, 128] },
  },
};

/** Models whose attention is that of another here: a cache of another dtype changes nothing else. */
const SAME_ATTENTION = /tied head|(qwen3 with|shared) expert|widths/;

const cases = (["auto", "fp8"] as const).flatMap((kvCacheDtype) =>
  Object.entries(MODELS).flatMap(([name, config]) =>
    (kvCacheDtype === "fp8" && SAME_ATTENTION.test(name) ? [] : CAPABILITIES).map(
      (capability) => [name, capability.join("."), kvCacheDtype, config, capability] as const,
    ),
  ),
);
const quantised = Object.entries(QUANTISED).flatMap(([name, config]) =>
  CAPABILITIES.map((capability) => [name, capability.join("."), "auto", config, capability] as const),
);

test.each([...cases, ...quantised])(
  "%s on compute capability %s with a cache of dtype %s compiles nothing late",
  async (_name, _text, kvCacheDtype, config, capability) => {
    using machine = new FakeMachine({ computeCapability: capability });
    const folder = join(machine.cacheFolder, "model");
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, "config.json"), JSON.stringify(config));
    // Every token drawn is 7; without this, it would be what the memory happens to hold.
    machine.cuda.effects.set("sample_rows", (launch) => {
      const out = machine.cuda.bytesOf(namedArguments(launch)["out"]!);
      new Int32Array(out.buffer).fill(7, 0, launch.grid[0]);
    });
    let foreseen = 0;
    const loaded = await loadModel(folder, resolveEngineConfig({ ...OPTIONS, kvCacheDtype }), {
      openBackend: () => {
        const backend = machine.backend("bfloat16", { quantiseActivations: true });
        const prepare = backend.prepare.bind(backend);
        backend.prepare = async (shape) => {
          await prepare(shape);
          foreseen = machine.nvrtc.requests.length;
        };
        return backend;
      },
    });
    try {
      for (const asked of ASKED) add(loaded.engine, makeRequest(range(0, 20), { maxTokens: 4, ...asked }));
      drain(loaded.engine);
      // One prompt in chunks; then as many rows as there may be, ending one after another.
      add(loaded.engine, makeRequest(range(0, 900), { maxTokens: 2 }));
      for (let i = 0; i < 40; i++) add(loaded.engine, makeRequest([i, 1, 2], { maxTokens: 2 + i }));
      drain(loaded.engine);
    } finally {
      loaded.dispose();
    }
    const late = machine.nvrtc.requests
      .slice(foreseen)
      .map(({ name, options }) => `${name} ${options.join(" ")}`);
    expect(foreseen).toBeGreaterThan(5);
    expect(late).toEqual([]);
  },
);
