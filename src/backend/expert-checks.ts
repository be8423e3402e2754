import type { FloatDType } from "../base/dtype.ts";
import type { ExpertFusion, ExpertSpec, ExpertWeights } from "./experts.ts";
import type { RmsNormSpec } from "./linear-fusion.ts";
import {
  check,
  checkWeight,
  disjoint,
  disjointFromWeight,
  refuse,
  sameOrDisjoint,
} from "./operand-checks.ts";
import type { Tensor } from "./tensor.ts";
import type { Weight } from "./weight.ts";

/** The checks before ops of a mixture of experts run; see checks.ts. */

/** Tokens T, hidden size H, intermediate size I, and the experts: how many there are. */
export function checkExperts(
  dtype: FloatDType,
  out: Tensor,
  x: Tensor,
  logits: Tensor,
  { count, routerBias, expertScales, gateUp, down, gateUpBias, downBias }: ExpertWeights,
  { perToken }: ExpertSpec,
  { norm, addTo }: ExpertFusion,
  kept: readonly FloatDType[] = [],
) {
  const op = "experts";
  check(op, "x", x, dtype, "T", "H");
  const [tokens, hidden] = [x.dim(0), x.dim(1)];
  check(op, "logits", logits, "float32", tokens, count);
  if (!(perToken >= 1 && perToken <= count)) refuse(op, `${perToken} of ${count} experts a token`);
  if (routerBias !== undefined) check(op, "routerBias", routerBias, "float32", count);
  if (expertScales !== undefined) check(op, "expertScales", expertScales, "float32", count);
  const intermediate = down.shape[1];
  checkWeight(op, "gateUp", gateUp, [dtype, ...kept], count * 2 * intermediate, hidden);
  checkWeight(op, "down", down, [dtype, ...kept], count * hidden, intermediate);
  if (gateUpBias !== undefined) check(op, "gateUpBias", gateUpBias, dtype, count * 2 * intermediate);
  if (downBias !== undefined) check(op, "downBias", downBias, dtype, count * hidden);
  if (norm !== undefined) check(op, "norm.weight", norm.weight, dtype, hidden);
  if (addTo !== undefined) check(op, "addTo", addTo, dtype, tokens, hidden);
  check(op, "out", out, dtype, tokens, hidden);
  sameOrDisjoint(op, out, x, "x");
  disjoint(op, out, { logits, routerBias, expertScales, gateUpBias, downBias, norm: norm?.weight });
  disjointFromWeight(op, out, gateUp);
  disjointFromWeight(op, out, down);
  if (addTo !== undefined) sameOrDisjoint(op, out, addTo, "addTo");
  return { tokens, hidden, intermediate, count };
}

/** Tokens T, hidden size H, and the width I of what is gated. */
export function checkGateRows(
  dtype: FloatDType,
  y: Tensor,
  x: Tensor,
  gate: Weight,
  norm: RmsNormSpec | undefined,
  kept: readonly FloatDType[] = [],
) {
  const op = "gateRows";
  check(op, "y", y, dtype, "T", "I");
  const [tokens, width] = [y.dim(0), y.dim(1)];
  check(op, "x", x, dtype, tokens, "H");
  const hidden = x.dim(1);
  checkWeight(op, "gate", gate, [dtype, ...kept], 1, hidden);
  if (norm !== undefined) check(op, "norm.weight", norm.weight, dtype, hidden);
  disjoint(op, y, { x, norm: norm?.weight }, "y");
  disjointFromWeight(op, y, gate, "y");
  return { tokens, hidden, width };
}
