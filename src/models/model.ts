import type { Backend } from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import type { ParameterSpec } from "../base/parameters.ts";
import type { ForwardContext, Parameters } from "../layers/layer.ts";
import type { ModelConfig } from "./config.ts";

/** A decoder-only language model, loaded on a backend. */
export interface CausalLM {
  readonly config: ModelConfig;
  /** Final hidden states [T, H] of the batch's tokens; writes their keys and values to the cache. */
  forward(context: ForwardContext): Tensor;
  /** Writes logits float32 [R, V] of hidden[R, H] to `out`. */
  logits(backend: Backend, out: Tensor, hidden: Tensor): void;
}

/** A model before it is loaded: what it needs from the checkpoint, and how to put it together. */
export interface ModelDefinition {
  readonly parameters: readonly ParameterSpec[];
  /** Checkpoint tensors that are neither needed nor an error. */
  readonly ignored: readonly RegExp[];
  /** `maxPositions`: length of the position tables, in tokens. */
  build(parameters: Parameters, backend: Backend, maxPositions: number): CausalLM;
}

/** The architectures of one family, and how a config of theirs becomes a model. */
export interface ModelFamily {
  readonly architectures: readonly string[];
  define(config: ModelConfig): ModelDefinition;
}
