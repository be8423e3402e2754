import type { AttentionSpec } from "../attention-spec.ts";
import type { BatchTensors, LayerCache, SampleRows, SlotTensors, StepBatch } from "../backend.ts";
import type { ExpertWeights } from "../experts.ts";
import type { Tensor } from "../tensor.ts";
import type { Weight } from "../weight.ts";
import type { AttendSpec } from "./attend.ts";
import type { PagedKv } from "./attention.ts";
import type { BatchMetadata, DrawnSamples, StepMetadata } from "./batch.ts";
import { rowsOf } from "./dequantise.ts";
import type { HostExperts, HostRouting } from "./experts.ts";
import type { Float8Kv } from "./float8-kv.ts";
import { bytes, floats, ints, words } from "./host-buffer.ts";
import type { HostWeight } from "./linear.ts";
import type { HostSlots } from "./slots.ts";

/** Ops' operands as arrays in host memory. */

export function optionalFloats(tensor: Tensor | undefined): Float32Array | undefined {
  return tensor === undefined ? undefined : floats(tensor);
}

export function pagedKv(
  { keys, values, keyScale = 1, valueScale = 1 }: LayerCache,
  extents: { readonly blocks: number; readonly blockSize: number },
): PagedKv | Float8Kv {
  return keys.dtype === "float8_e4m3"
    ? { ...extents, keys: bytes(keys), values: bytes(values), keyScale, valueScale }
    : { ...extents, keys: floats(keys), values: floats(values) };
}

export function hostAttention(spec: AttentionSpec, rotaryDim: number): AttendSpec {
  const { headNorm, cosSin, queryScales, sinks } = spec;
  return {
    ...spec,
    headNorm: headNorm && {
      ...{ ...headNorm, query: floats(headNorm.query), key: optionalFloats(headNorm.key) },
    },
    angles: cosSin && { cosSin: floats(cosSin), rotaryDim },
    queryScales: optionalFloats(queryScales),
    sinks: optionalFloats(sinks),
  };
}

export function hostWeight(weight: Weight): HostWeight {
  const isPlain = weight.format === "dense" && weight.data.dtype === "float32";
  return isPlain ? floats(weight.data) : rowsOf(weight);
}

export function hostRouting({ routerBias, expertScales }: ExpertWeights): HostRouting {
  return { bias: optionalFloats(routerBias), scales: optionalFloats(expertScales) };
}

export function hostExperts(weights: ExpertWeights): HostExperts {
  const { gateUp, down, gateUpBias, downBias } = weights;
  return {
    ...{ routing: hostRouting(weights), gateUp: hostWeight(gateUp), down: hostWeight(down) },
    ...{ gateUpBias: optionalFloats(gateUpBias), downBias: optionalFloats(downBias) },
  };
}

export function hostBatch(batch: BatchTensors): Omit<BatchMetadata, "tokenIds"> {
  return { ...hostRows(batch), slotMapping: ints(batch.slotMapping) };
}

export function hostRows(batch: BatchTensors | StepBatch): Omit<StepMetadata, "tokenIds"> {
  return {
    positions: ints(batch.positions),
    cuSeqlensQ: ints(batch.cuSeqlensQ),
    contextLens: ints(batch.contextLens),
    rowSlots: ints(batch.rowSlots),
  };
}

export function hostSamples({ slots, positions }: SampleRows): DrawnSamples {
  return { slots: ints(slots), positions: ints(positions) };
}

export function hostSlots(
  slots: SlotTensors,
  extents: { slots: number; capacity: number; vocab: number },
): HostSlots {
  return {
    ...extents,
    tokens: ints(slots.tokens),
    lengths: ints(slots.lengths),
    numComputedTokens: ints(slots.numComputedTokens),
    params: words(slots.params),
    floatParams: floats(slots.params),
    edits: words(slots.edits),
    badWords: words(slots.badWords),
    allowed: words(slots.allowed),
    counts: words(slots.counts),
  };
}
