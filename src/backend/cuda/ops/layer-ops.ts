import type { AttentionSpec } from "../../attention-spec.ts";
import type { BatchTensors, LayerCache, LinearFusion } from "../../backend.ts";
import type { Tensor } from "../../tensor.ts";
import type { DenseWeight } from "../../weight.ts";

/** A call of `Backend.linear`. */
export interface LinearCall {
  readonly kind: "linear";
  readonly out: Tensor;
  readonly x: Tensor;
  readonly weight: DenseWeight;
  readonly fusion: LinearFusion;
}

/** A call of `Backend.attend`. */
export interface AttendCall {
  readonly kind: "attend";
  readonly out: Tensor;
  readonly qkv: Tensor;
  readonly cache: LayerCache;
  readonly batch: BatchTensors;
  readonly spec: AttentionSpec;
}

export type LayerCall = LinearCall | AttendCall;

/** A layer as the ops that a model calls for it, in their order. */
export interface LayerCalls {
  readonly qkv: LinearCall;
  readonly attend: AttendCall;
  readonly output: LinearCall;
  readonly up: LinearCall;
  readonly down: LinearCall;
}

/** The number of calls of a layer. */
export const CALLS_OF_LAYER = 5;

/** The layer of five calls. */
export function layerOf(calls: readonly LayerCall[]): LayerCalls {
  const [qkv, attend, output, up, down] = calls as [
    LinearCall,
    AttendCall,
    LinearCall,
    LinearCall,
    LinearCall,
  ];
  return { qkv, attend, output, up, down };
}

/**
 * True if `call` is the one that follows `before`, the first calls of a layer:
 *
 * 0. qkv = norm(residual) · weightᵀ
 * 1. attended = attend(qkv), each row of one token
 * 2. residual += attended · weightᵀ
 * 3. activated = act(norm(residual) · weightᵀ), the norm with the epsilon of the first
 * 4. residual += activated · weightᵀ
 */
export function continuesLayer(before: readonly LayerCall[], call: LayerCall): boolean {
  const [qkv, attend, , up] = before as [LinearCall?, AttendCall?, LinearCall?, LinearCall?];
  if (call.kind === "attend") {
    const { decodeRows, numRows, numTokens } = call.batch;
    return (
      before.length === 1 && isSame(call.qkv, qkv!.out) && decodeRows === numRows && numRows === numTokens
    );
  }
  const { x, out, fusion } = call;
  const { norm, bias, activation, addTo } = fusion;
  if (before.length === 0) return norm !== undefined && activation === undefined && addTo === undefined;
  const residual = qkv!.x;
  const adds = norm === undefined && addTo !== undefined && isSame(addTo, residual) && isSame(out, residual);
  if (before.length === 2) return adds && isSame(x, attend!.out);
  if (before.length === 3) {
    const isPlain = bias === undefined && addTo === undefined && isSame(x, residual);
    return isPlain && norm !== undefined && norm.eps === qkv!.fusion.norm!.eps;
  }
  return before.length === 4 && adds && bias === undefined && isSame(x, up!.out);
}

/** True if a call does in its layer what `first` does in the first one: all but weights, norms and caches is the same. */
export function repeats(first: LayerCall, call: LayerCall): boolean {
  if (first.kind === "attend" || call.kind === "attend")
    return first.kind === "attend" && call.kind === "attend" && repeatsAttend(first, call);
  const [a, b] = [first.fusion, call.fusion];
  return (
    isSame(first.x, call.x) &&
    isSame(first.out, call.out) &&
    first.weight.shape[0] === call.weight.shape[0] &&
    a.norm?.eps === b.norm?.eps &&
    a.activation?.kind === b.activation?.kind &&
    a.activation?.gated === b.activation?.gated
  );
}

function repeatsAttend(first: AttendCall, call: AttendCall): boolean {
  const [a, b] = [first.spec, call.spec];
  return (
    first.batch === call.batch &&
    isSame(first.qkv, call.qkv) &&
    isSame(first.out, call.out) &&
    first.cache.keys.dtype === call.cache.keys.dtype &&
    a.cosSin?.address === b.cosSin?.address &&
    a.cosSin?.size === b.cosSin?.size &&
    a.headNorm?.eps === b.headNorm?.eps &&
    a.headNorm?.normsValues === b.headNorm?.normsValues &&
    (["numHeads", "numKvHeads", "headDim", "scale", "window"] as const).every(
      (field) => a[field] === b[field],
    )
  );
}

function isSame(a: Tensor, b: Tensor): boolean {
  return a.address === b.address && a.size === b.size && a.dtype === b.dtype;
}
