import type { Architecture } from "./family-defaults.ts";

/** An architecture for people: docs/models.md lists them. */
export interface SupportedModel {
  /** Models that have the architecture. */
  readonly models: string;
  /** Of its block, that not all have. */
  readonly features: readonly string[];
}

const ROPES = "rope: linear, dynamic, llama3, yarn";

/** All that can be loaded. */
export const SUPPORTED_MODELS: Readonly<Record<Architecture, SupportedModel>> = {
  LlamaForCausalLM: {
    models: "Llama 2 and 3, TinyLlama, SmolLM 2, Yi, DeepSeek-R1 distills",
    features: ["biases where the config has them", ROPES],
  },
  MistralForCausalLM: { models: "Mistral 7B, Nemo, Small", features: ["sliding window"] },
  Ministral3ForCausalLM: { models: "Ministral 3", features: ["queries scaled by position", "rope: yarn"] },
  Qwen2ForCausalLM: {
    models: "Qwen 2 and 2.5, QwQ, DeepSeek-R1 distills",
    features: ["biases of query, key and value", "sliding window from a layer on"],
  },
  Qwen3ForCausalLM: { models: "Qwen 3", features: ["norms of each query and key head"] },
  Qwen2MoeForCausalLM: {
    models: "Qwen 1.5 and 2 MoE",
    features: ["Qwen 2's block with experts", "an expert that all tokens share, with a gate"],
  },
  Qwen3MoeForCausalLM: { models: "Qwen 3 MoE", features: ["Qwen 3's block with experts"] },
  Qwen3NextForCausalLM: {
    models: "Qwen 3 Next",
    features: ["Qwen 3.5's block, its projections fused, with experts", "an expert that all tokens share"],
  },
  Qwen3_5ForCausalLM: {
    models: "Qwen 3.5 and 3.6, dense",
    features: [
      ...["linear attention by a gated delta rule in three of four layers", "attention with a gated output"],
      ...["norms of each query and key head", "rotation of a part of each head"],
    ],
  },
  Qwen3_5MoeForCausalLM: {
    models: "Qwen 3.5 and 3.6 MoE",
    features: ["Qwen 3.5's block with experts", "an expert that all tokens share, with a gate"],
  },
  MixtralForCausalLM: { models: "Mixtral", features: ["Mistral's block with experts"] },
  GptOssForCausalLM: {
    models: "gpt-oss",
    features: [
      ...[
        "experts with biases, in MXFP4 or floats",
        "limited gates",
        "attention sinks",
        "biases",
        "rope: yarn",
      ],
      "sliding window in every other layer",
    ],
  },
  GPTNeoXForCausalLM: {
    models: "GPT-NeoX, Pythia",
    features: ["LayerNorm", "attention beside feed-forward", "rotation of a part of each head", "biases"],
  },
  Phi3ForCausalLM: {
    models: "Phi-3, Phi-3.5, Phi-4, Phi-4-mini",
    features: ["fused projections", "rotation of a part of each head", "rope: longrope", "sliding window"],
  },
  Olmo2ForCausalLM: {
    models: "OLMo 2",
    features: ["norms after attention and feed-forward", "norms of all queries and of all keys"],
  },
  Olmo3ForCausalLM: {
    models: "OLMo 3",
    features: ["OLMo 2's norms", "sliding window in three of four layers", "ropes by layer: yarn"],
  },
  SmolLM3ForCausalLM: { models: "SmolLM 3", features: ["layers without rotation"] },
  GraniteForCausalLM: {
    models: "Granite 3 and 4.1, dense",
    features: ["multipliers of embeddings, residual, scores and logits"],
  },
  GemmaForCausalLM: { models: "Gemma 1", features: ["GELU gate", "norms that add 1", "scaled embeddings"] },
  Gemma2ForCausalLM: {
    models: "Gemma 2",
    features: [
      ...["Gemma's norms, before and after attention and feed-forward", "soft caps of scores and logits"],
      "sliding window in every other layer",
    ],
  },
  Gemma3ForCausalLM: {
    models: "Gemma 3",
    features: [
      ...["Gemma 2's norms", "norms of each query and key head", "ropes by layer: linear"],
      "sliding window in five of six layers",
    ],
  },
  Gemma4ForCausalLM: {
    models: "Gemma 4: E2B, E4B, 26B-A4B, 31B",
    features: [
      ...[
        "Gemma 3's norms, without the 1",
        "norms of values",
        "heads by layer",
        "ropes by layer: proportional",
      ],
      ...["sliding window in most layers", "layers that share keys and values", "values that are keys"],
      ...["inputs of each layer's own", "experts beside a dense block"],
    ],
  },
};
