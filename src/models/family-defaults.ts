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
  /** First layer that has it, where layers are not listed. */
  readonly firstWindowLayer: number;
  readonly eosTokenId: number | undefined;
  /** Attention heads have sinks. Default false. */
  readonly attentionSinks?: boolean;
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
  firstWindowLayer: 0,
  eosTokenId: 2,
};
const QWEN2: FamilyDefaults = {
  ...LLAMA,
  vocabSize: 151_936,
  intermediateSize: 22_016,
  numKvHeads: 32,
  maxPositionEmbeddings: 32_768,
  slidingWindow: 4096,
  usesSlidingWindow: false,
  firstWindowLayer: 28,
  eosTokenId: undefined,
};

/** By architecture, as in config.json's `architectures`: all that can be loaded. */
export const FAMILY_DEFAULTS = {
  Qwen3ForCausalLM: { ...QWEN2, headDim: 128 },
  Qwen2ForCausalLM: QWEN2,
  LlamaForCausalLM: LLAMA,
  MistralForCausalLM: {
    ...LLAMA,
    intermediateSize: 14_336,
    numKvHeads: 8,
    maxPositionEmbeddings: 131_072,
    slidingWindow: 4096,
  },
} as const satisfies Readonly<Record<string, FamilyDefaults>>;

export type Architecture = keyof typeof FAMILY_DEFAULTS;

export function isSupported(architecture: string): architecture is Architecture {
  return Object.hasOwn(FAMILY_DEFAULTS, architecture);
}
