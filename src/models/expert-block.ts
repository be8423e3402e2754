import { invariant } from "../base/errors.ts";
import { type ExpertNames, Experts } from "../layers/experts.ts";
import type { FeedForward } from "../layers/feed-forward.ts";
import { GatedMlp } from "../layers/gated-mlp.ts";
import { SharedExpert } from "../layers/shared-expert.ts";
import type { ModelConfig } from "./config.ts";
import type { LayerPlace } from "./decoder.ts";

/** The differences of a family's experts from Qwen's. */
export interface ExpertBlockOptions {
  /** The checkpoint's name of the block. Default `mlp`. */
  readonly block?: string;
  readonly names?: Partial<ExpertNames>;
  readonly bias?: boolean;
}

/** The feed-forward block of a layer: experts, with one that all tokens share if the model has it, or a plain one in layers without. */
export function expertBlock(
  config: ModelConfig,
  { parameters, index, name, source }: LayerPlace,
  { block = "mlp", ...options }: ExpertBlockOptions = {},
): FeedForward {
  const { experts, hiddenSize, activation } = config;
  invariant(experts !== undefined, "a family with experts has a config of them");
  const names = [`${name}.mlp`, `${source}.${block}`] as const;
  if (!experts.layers[index]) return new GatedMlp(parameters, ...names, { ...config, bias: false });
  const routed = new Experts(parameters, ...names, {
    ...{ ...experts, ...options, hiddenSize, activation: experts.limitedSwiglu ?? { kind: activation } },
  });
  const { sharedIntermediateSize: intermediateSize } = experts;
  if (intermediateSize === 0) return routed;
  return new SharedExpert(parameters, ...names, { hiddenSize, intermediateSize, activation }, routed);
}
