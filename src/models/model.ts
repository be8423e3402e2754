import type { Backend, SampleRows, SlotTensors } from "../backend/backend.ts";
import type { DeltaNetShape } from "../backend/delta-net.ts";
import type { Tensor } from "../backend/tensor.ts";
import type { Weight } from "../backend/weight.ts";
import type { ParameterSpec } from "../base/parameter-spec.ts";
import type { Shard } from "../base/shard.ts";
import type { ForwardContext, OpContext } from "../layers/forward-context.ts";
import type { WeightScheme } from "../layers/weight-scheme.ts";
import type { ModelConfig } from "./config.ts";
import type { CachedLayer } from "./kv-heads.ts";

/** A decoder-only language model, or one rank's part of it, loaded on a backend. */
export interface CausalLM {
  readonly config: ModelConfig;
  /** Undefined: no layer keeps a state. */
  readonly stateShape?: StateShape | undefined;
  /** The residual stream [T, H] of the batch's tokens after the last layer; writes their keys and values to the cache. */
  forward(context: ForwardContext): Tensor;
  /** Writes logits float32 [R, V] of rows hidden[R, H] of that stream to `out`. */
  logits(context: OpContext, out: Tensor, hidden: Tensor): void;
  /** Rows hidden[R, H] of that stream after the final norm, in memory of the workspace that the next call overwrites. */
  states(context: OpContext, hidden: Tensor): Tensor;
  /** Draws a token after each of rows hidden[R, H], for slots that need no logits; see `Backend.drawTokens`. */
  drawTokens(
    context: OpContext,
    out: Tensor,
    hidden: Tensor,
    logits: Tensor,
    samples: SampleRows,
    slots: SlotTensors,
  ): void;
}

/** The state that a rank keeps of a sequence, in each layer that has one. */
export interface StateShape extends DeltaNetShape {
  /** Those layers. */
  readonly numLayers: number;
}

/** A model before it is loaded: what it needs from the checkpoint, and how to put it together. */
export interface ModelDefinition {
  readonly parameters: readonly ParameterSpec[];
  /** The matrices that are multiplied by, without memory. */
  readonly matrices: readonly Weight[];
  /** Checkpoint tensors that are neither needed nor an error. */
  readonly ignored: readonly RegExp[];
  /** The layers that have a cache of their own, in their order, as a rank has them. */
  readonly cachedLayers: readonly CachedLayer[];
  readonly stateShape: StateShape | undefined;
  /**
   * @param weights what was loaded for `parameters`, by their names
   * @param maxPositions length of the position tables, in tokens
   */
  build(weights: ReadonlyMap<string, Tensor>, backend: Backend, maxPositions: number): CausalLM;
}

/** The part of a model that is defined, and how its checkpoint stores matrices. */
export interface ModelPart {
  readonly shard: Shard;
  readonly scheme: WeightScheme;
}

/** A family of models: makes a model of its configs. */
export interface ModelFamily {
  define(config: ModelConfig, part: ModelPart): ModelDefinition;
}
