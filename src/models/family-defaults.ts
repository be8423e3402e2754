import type { JsonObject } from "../base/json-object.ts";
import { EXPERT_FIELDS, type ExpertsDefaults } from "./experts-config.ts";
import type { RopeDefaults } from "./rope-config.ts";

/** The defaults of fields that a config.json does not mention, as transformers' configuration class of the family has them. */
export interface FamilyDefaults extends RopeDefaults {
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly numLayers: number;
  readonly numHeads: number;
  /** Undefined: as many as heads. */
  readonly numKvHeads: number | undefined;
  /** Undefined: the hidden size divided by the heads. */
  readonly headDim: number | undefined;
  readonly maxPositionEmbeddings: number;
  /** In tokens; 0 = none. */
  readonly slidingWindow: number;
  /** True if the window holds without `use_sliding_window`. */
  readonly usesSlidingWindow: boolean;
  /** `max_window_layers`: the first layer that has it, where layers are not listed. Undefined: configs do not say so. */
  readonly firstWindowLayer?: number;
  /** Layers that have the window must be listed. Default false. */
  readonly listsWindows?: boolean;
  readonly eosTokenId: number | undefined;
  /** Layers with a window are followed by one without, each so manyth layer; layers are not listed. Default: all have one. */
  readonly fullLayerInterval?: number;
  /** Fields besides these that are not 0, false or empty by default. */
  readonly fields?: JsonObject;
  /** Names that fields go by, by those of most families. */
  readonly aliases?: Readonly<Record<string, string>>;
  /** Of `REFUSED_FIELDS`, those that the family honours. */
  readonly honoured?: readonly string[];
  /** Attention heads have sinks. Default false. */
  readonly attentionSinks?: boolean;
  /** The last layer has no window, whatever a config says. Default false. */
  readonly lastLayerIsFull?: boolean;
  /** Configs have `Gemma4Config`. Default false. */
  readonly gemma4?: boolean;
  /** Layers with linear attention and with attention take turns. Default false. */
  readonly linearAttention?: boolean;
  /** Present in families with experts. */
  readonly experts?: ExpertsDefaults;
}

const LLAMA: FamilyDefaults = {
  vocabSize: 32_000,
  hiddenSize: 4096,
  intermediateSize: 11_008,
  numLayers: 32,
  numHeads: 32,
  numKvHeads: undefined,
  headDim: undefined,
  maxPositionEmbeddings: 2048,
  slidingWindow: 0,
  usesSlidingWindow: true,
  eosTokenId: 2,
};
const QWEN: FamilyDefaults = {
  ...LLAMA,
  vocabSize: 151_936,
  intermediateSize: 22_016,
  numKvHeads: 32,
  maxPositionEmbeddings: 32_768,
  slidingWindow: 4096,
  usesSlidingWindow: false,
  eosTokenId: undefined,
};
const QWEN2: FamilyDefaults = { ...QWEN, firstWindowLayer: 28 };

const OLMO2: FamilyDefaults = {
  ...LLAMA,
  vocabSize: 50_304,
  eosTokenId: 50_279,
  fields: { rms_norm_eps: 1e-5 },
};
const GEMMA: FamilyDefaults = {
  ...LLAMA,
  ...{ vocabSize: 256_000, hiddenSize: 3072, intermediateSize: 24_576, numLayers: 28 },
  ...{ numHeads: 16, numKvHeads: 16, headDim: 256, maxPositionEmbeddings: 8192, eosTokenId: 1 },
  fields: { hidden_act: "gelu_pytorch_tanh", tie_word_embeddings: true },
};
const GEMMA2: FamilyDefaults = {
  ...GEMMA,
  ...{ hiddenSize: 2304, intermediateSize: 9216, numLayers: 26, numHeads: 8, numKvHeads: 4 },
  ...{ slidingWindow: 4096, fullLayerInterval: 2 },
  fields: {
    ...{ hidden_activation: "gelu_pytorch_tanh", tie_word_embeddings: true, query_pre_attn_scalar: 256 },
    ...{ final_logit_softcapping: 30, attn_logit_softcapping: 50 },
  },
  honoured: ["query_pre_attn_scalar", "final_logit_softcapping", "attn_logit_softcapping"],
};
const MISTRAL: FamilyDefaults = {
  ...LLAMA,
  intermediateSize: 14_336,
  numKvHeads: 8,
  maxPositionEmbeddings: 131_072,
  slidingWindow: 4096,
};

const QWEN3_5: FamilyDefaults = {
  ...QWEN2,
  ...{ vocabSize: 248_320, intermediateSize: 12_288, numHeads: 16, numKvHeads: 4, headDim: 256 },
  linearAttention: true,
  fields: { partial_rotary_factor: 0.25 },
};
const QWEN3_5_MOE: FamilyDefaults = {
  ...QWEN3_5,
  ...{ hiddenSize: 2048, numLayers: 40, numKvHeads: 2 },
  honoured: EXPERT_FIELDS,
  experts: {
    ...{ count: 256, perToken: 8, intermediateSize: 512, sharedIntermediateSize: 512 },
    softmaxOver: "chosen",
  },
};

/** By architecture, as in config.json's `architectures`: all that can be loaded. */
export const FAMILY_DEFAULTS = {
  Qwen3ForCausalLM: { ...QWEN2, headDim: 128 },
  Qwen2ForCausalLM: QWEN2,
  LlamaForCausalLM: LLAMA,
  MistralForCausalLM: MISTRAL,
  Qwen3MoeForCausalLM: {
    ...QWEN,
    ...{ hiddenSize: 2048, intermediateSize: 6144, numLayers: 24, numKvHeads: 4 },
    honoured: EXPERT_FIELDS,
    experts: {
      ...{ count: 128, perToken: 8, intermediateSize: 768, sharedIntermediateSize: 0 },
      softmaxOver: undefined,
    },
  },
  Qwen2MoeForCausalLM: {
    ...QWEN,
    ...{ hiddenSize: 2048, intermediateSize: 5632, numLayers: 24, numHeads: 16, numKvHeads: 16 },
    listsWindows: true,
    aliases: { attention_bias: "qkv_bias" },
    honoured: EXPERT_FIELDS,
    experts: {
      ...{ count: 60, perToken: 4, intermediateSize: 1408, sharedIntermediateSize: 5632 },
      softmaxOver: undefined,
    },
  },
  Qwen3NextForCausalLM: {
    ...QWEN3_5_MOE,
    ...{ vocabSize: 151_936, intermediateSize: 5632, numLayers: 48 },
    experts: { ...QWEN3_5_MOE.experts!, count: 512, perToken: 10, softmaxOver: undefined },
    fields: { ...QWEN3_5.fields, norm_topk_prob: true },
  },
  Qwen3_5ForCausalLM: QWEN3_5,
  Qwen3_5MoeForCausalLM: QWEN3_5_MOE,
  MixtralForCausalLM: {
    ...MISTRAL,
    slidingWindow: 0,
    fields: { rms_norm_eps: 1e-5 },
    honoured: EXPERT_FIELDS,
    experts: {
      ...{ count: 8, perToken: 2, intermediateSize: undefined, sharedIntermediateSize: 0 },
      softmaxOver: "chosen",
    },
  },
  GptOssForCausalLM: {
    ...LLAMA,
    ...{ vocabSize: 201_088, hiddenSize: 2880, intermediateSize: 2880, numLayers: 36, numHeads: 64 },
    ...{ numKvHeads: 8, headDim: 64, maxPositionEmbeddings: 131_072, slidingWindow: 128 },
    ...{ fullLayerInterval: 2, ropeTheta: 150_000, attentionSinks: true, eosTokenId: undefined },
    fields: { rms_norm_eps: 1e-5 },
    honoured: EXPERT_FIELDS,
    experts: {
      ...{ count: 128, perToken: 4, intermediateSize: undefined, sharedIntermediateSize: 0 },
      ...{ softmaxOver: "chosen", limitedSwiglu: { alpha: 1.702, limit: 7 } },
    },
  },
  Ministral3ForCausalLM: {
    ...LLAMA,
    ...{ vocabSize: 131_072, intermediateSize: 14_336, numLayers: 34, numKvHeads: 8, headDim: 128 },
    maxPositionEmbeddings: 262_144,
    fields: { rms_norm_eps: 1e-5 },
  },
  GPTNeoXForCausalLM: {
    ...LLAMA,
    ...{ vocabSize: 50_432, hiddenSize: 6144, intermediateSize: 24_576, numLayers: 44, numHeads: 64 },
    fields: {
      ...{ hidden_act: "gelu", attention_bias: true, rms_norm_eps: 1e-5 },
      ...{ use_parallel_residual: true, partial_rotary_factor: 0.25 },
    },
    aliases: {
      rms_norm_eps: "layer_norm_eps",
      rope_theta: "rotary_emb_base",
      partial_rotary_factor: "rotary_pct",
    },
    honoured: ["use_parallel_residual"],
  },
  Phi3ForCausalLM: {
    ...LLAMA,
    ...{ vocabSize: 32_064, hiddenSize: 3072, intermediateSize: 8192, maxPositionEmbeddings: 4096 },
    eosTokenId: 32_000,
    fields: { rms_norm_eps: 1e-5, original_max_position_embeddings: 4096 },
  },
  Olmo2ForCausalLM: OLMO2,
  Olmo3ForCausalLM: {
    ...OLMO2,
    ...{ slidingWindow: 4096, fullLayerInterval: 4, ropeTheta: 500_000, slidingRope: {} },
  },
  SmolLM3ForCausalLM: {
    ...LLAMA,
    ...{ vocabSize: 128_256, hiddenSize: 2048, numLayers: 36, numHeads: 16, numKvHeads: 4 },
    ...{ maxPositionEmbeddings: 32_768, eosTokenId: 128_001, usesSlidingWindow: false },
    ...{ ropeTheta: 2_000_000, noRopeInterval: 4 },
    fields: { tie_word_embeddings: true },
    honoured: ["no_rope_layers", "no_rope_layer_interval"],
  },
  GraniteForCausalLM: {
    ...LLAMA,
    eosTokenId: 2,
    fields: { attention_multiplier: 1 },
    honoured: ["embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"],
  },
  GemmaForCausalLM: GEMMA,
  Gemma2ForCausalLM: GEMMA2,
  Gemma3ForCausalLM: {
    ...GEMMA2,
    ...{ vocabSize: 262_208, maxPositionEmbeddings: 131_072, fullLayerInterval: 6 },
    ...{ ropeTheta: 1_000_000, slidingRope: { theta: 10_000 } },
    fields: { ...GEMMA2.fields, final_logit_softcapping: null, attn_logit_softcapping: null },
  },
  Gemma4ForCausalLM: {
    ...GEMMA2,
    ...{ vocabSize: 262_144, numLayers: 30, maxPositionEmbeddings: 131_072, slidingWindow: 512 },
    ...{ fullLayerInterval: 6, lastLayerIsFull: true, slidingRope: {}, gemma4: true },
    fields: {
      ...{ hidden_activation: "gelu_pytorch_tanh", tie_word_embeddings: true },
      ...{ attention_multiplier: 1, enable_moe_block: false },
      rope_parameters: {
        full_attention: { rope_type: "proportional", partial_rotary_factor: 0.25, rope_theta: 1_000_000 },
        sliding_attention: { rope_type: "default", rope_theta: 10_000 },
      },
    },
    aliases: { num_experts_per_tok: "top_k_experts" },
    honoured: [
      ...["attention_multiplier", "final_logit_softcapping", ...EXPERT_FIELDS],
      ...["num_kv_shared_layers", "hidden_size_per_layer_input", "attention_k_eq_v"],
    ],
    // As of the one model that has any: transformers has no defaults.
    experts: {
      ...{ count: 128, perToken: 8, intermediateSize: 704, sharedIntermediateSize: 0 },
      ...{ softmaxOver: "chosen", areBesideDense: true },
    },
  },
} as const satisfies Readonly<Record<string, FamilyDefaults>>;

export type Architecture = keyof typeof FAMILY_DEFAULTS;

export function isSupported(architecture: string): architecture is Architecture {
  return Object.hasOwn(FAMILY_DEFAULTS, architecture);
}
