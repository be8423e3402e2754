import type { BatchTensors, LayerCache, SlotTensors, StepBatch } from "../backend.ts";
import type { Tensor } from "../tensor.ts";
import type { Weight } from "../weight.ts";
import type { PagedKv } from "./attention.ts";
import type { BatchMetadata, StepMetadata } from "./batch.ts";
import { rowsOf } from "./dequantise.ts";
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

export function hostWeight(weight: Weight): HostWeight {
  const isPlain = weight.format === "dense" && weight.data.dtype === "float32";
  return isPlain ? floats(weight.data) : rowsOf(weight);
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
    edits: words(slots.edits),
    badWords: words(slots.badWords),
    allowed: words(slots.allowed),
    counts: words(slots.counts),
  };
}
