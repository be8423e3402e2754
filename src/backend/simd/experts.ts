import { type ExpertsShape, sharesOf } from "../cpu/experts.ts";
import { floats } from "../cpu/host-buffer.ts";
import { hostRouting } from "../cpu/host-views.ts";
import type { ExpertFusion, ExpertSpec, ExpertWeights } from "../experts.ts";
import type { Tensor } from "../tensor.ts";
import type { SuperblockWeight, Weight } from "../weight.ts";
import { canMultiply, type KernelActivation, type MultiplyFusion } from "./multiply.ts";
import { knows } from "./operands.ts";
import type { Multiplied } from "./product-plan.ts";

/** The ops that experts are made of. */
export interface ExpertTools {
  /** Memory for the op's own tensors, which are disposed at its end. */
  empty(shape: readonly number[]): Tensor;
  multiply(out: Tensor, x: Tensor, weight: Multiplied, fusion: MultiplyFusion): void;
  rmsNorm(out: Tensor, x: Tensor, weight: Tensor, eps: number): void;
}

/** The weights that kernels can cut into experts'. */
type Divisible = Exclude<Multiplied, SuperblockWeight>;
/** `ExpertWeights` that kernels multiply by. */
export type MultipliedExperts = ExpertWeights & { readonly gateUp: Divisible; readonly down: Divisible };
/** `ExpertSpec` with an activation that kernels have. */
export type MultipliedSpec = ExpertSpec & { readonly activation: KernelActivation };

const FUSIONS: ReadonlySet<string> = new Set<keyof ExpertFusion>(["norm", "addTo"]);

/** The kernels have what these experts need. */
export function canComputeExperts(
  weights: ExpertWeights,
  fusion: ExpertFusion,
): weights is MultipliedExperts {
  const { gateUp, down, count } = weights;
  return (
    knows(fusion, FUSIONS) && [gateUp, down].every((weight) => canMultiply(weight) && canCut(weight, count))
  );
}

/** No block of scales is of two experts. No checkpoint has experts in superblocks. */
function canCut(weight: Weight, count: number): boolean {
  if (weight.format === "superblocks") return false;
  return weight.format !== "fp8" || (weight.shape[0] / count) % weight.blockRows === 0;
}

/** `ExpertOps.experts`: each expert multiplies the tokens that have it, and the terms of a token are added in the order of its logits. */
export function experts(
  tools: ExpertTools,
  out: Tensor,
  x: Tensor,
  logits: Tensor,
  weights: MultipliedExperts,
  spec: MultipliedSpec,
  { norm, addTo }: ExpertFusion,
  shape: ExpertsShape,
): void {
  const { tokens, hidden, intermediate } = shape;
  const { gateUp, down, gateUpBias, downBias } = weights;
  const count = tokens * spec.perToken;
  const own: Tensor[] = [];
  const empty = (rows: number, width: number) => {
    const tensor = tools.empty([rows, width]);
    own.push(tensor);
    return tensor;
  };
  let input = x;
  if (norm !== undefined) {
    input = empty(tokens, hidden);
    tools.rmsNorm(input, x, norm.weight, norm.eps);
  }
  const ofExperts = sharesOf(floats(logits), hostRouting(weights), shape, spec);
  // Rows of all experts' inputs and outputs, an expert's after those of the one before. One token is all experts' input.
  const shares = ofExperts.flat();
  const rows = tokens === 1 ? input : empty(count, hidden);
  if (tokens > 1) {
    const [from, to] = [floats(input), floats(rows)];
    for (const [i, { token }] of shares.entries())
      to.set(from.subarray(token * hidden, (token + 1) * hidden), i * hidden);
  }
  const [activated, outputs] = [empty(count, intermediate), empty(count, hidden)];
  let first = 0;
  for (const [expert, { length }] of ofExperts.entries()) {
    if (length === 0) continue;
    const part = (tensor: Tensor) => tensor.rows(first, first + length);
    tools.multiply(
      ...([part(activated), tokens === 1 ? rows : part(rows)] as const),
      ofExpert(gateUp, expert, 2 * intermediate),
      {
        bias: gateUpBias?.rows(2 * intermediate * expert, 2 * intermediate * (expert + 1)),
        activation: { ...spec.activation, gated: true },
      },
    );
    tools.multiply(part(outputs), part(activated), ofExpert(down, expert, hidden), {
      bias: downBias?.rows(hidden * expert, hidden * (expert + 1)),
    });
    first += length;
  }
  const terms = floats(outputs);
  const sums = new Float64Array(tokens * hidden);
  if (addTo !== undefined) sums.set(floats(addTo));
  for (let rank = 0; rank < spec.perToken; rank++) {
    for (const [i, share] of shares.entries()) {
      if (share.rank !== rank) continue;
      const [at, term] = [share.token * hidden, i * hidden];
      for (let column = 0; column < hidden; column++)
        sums[at + column]! += share.weight * terms[term + column]!;
    }
  }
  floats(out).set(sums);
  for (const { buffer } of own) buffer.dispose();
}

/** The rows of one expert, `rows` of them. */
function ofExpert(weight: Divisible, expert: number, rows: number): Divisible {
  const [first, end] = [expert * rows, (expert + 1) * rows];
  const shape = [rows, weight.shape[1]] as const;
  const data = weight.data.rows(first, end);
  if (weight.format === "dense") return { ...weight, shape, data };
  if (weight.format === "fp8") {
    const scales = weight.scales.rows(first / weight.blockRows, Math.ceil(end / weight.blockRows));
    return { ...weight, shape, data, scales };
  }
  const scales = weight.scales.rows(first, end);
  if (weight.format === "mxfp4") return { ...weight, shape, data, scales };
  return { ...weight, shape, data, scales, zeros: weight.zeros?.rows(first, end) };
}
