import * as layout from "../../../kernels-wasm/layout.ts";
import type { LinearFusion } from "../backend.ts";
import type { ExpertActivation, LimitedSwiglu } from "../experts.ts";
import type { Tensor } from "../tensor.ts";
import type { Weight } from "../weight.ts";
import { knows, type Operands } from "./operands.ts";
import type { Multiplied, ProductPlan } from "./product-plan.ts";
import type { ThreadPool } from "./thread-pool.ts";

/** Bytes of prepared inputs: more tokens are multiplied some at a time. */
const INPUT_BYTES = 2 ** 25;
/** Multiplications of a unit, or more. */
const UNIT_WORK = 2 ** 16;
/** Units for each thread, so that none waits long for the last. */
const UNITS_OF_THREAD = 8;

const ACTIVATIONS = {
  silu: layout.SILU,
  gelu_tanh: layout.GELU_TANH,
  limited_swiglu: layout.LIMITED_SWIGLU,
} as const;

/** The steps around a product that kernels have. */
export interface MultiplyFusion extends Omit<LinearFusion, "activation"> {
  readonly activation?: (KernelActivation & { readonly gated: boolean }) | undefined;
}

/** Those of an expert and of a product that kernels have; of gates alone the limited one. */
export type KernelActivation = { readonly kind: "silu" | "gelu_tanh" } | LimitedSwiglu;

export function isKernelActivation(activation: ExpertActivation): activation is KernelActivation {
  return activation.kind !== "gelu";
}

/** The kernels have the activation of this product, if it has one. */
export function isOfKernels(fusion: LinearFusion): fusion is LinearFusion & MultiplyFusion {
  return fusion.activation === undefined || isKernelActivation(fusion.activation);
}

/** The fields of a fusion and of its norm that kernels know. */
const FUSIONS: ReadonlySet<string> = new Set<keyof LinearFusion>(["norm", "bias", "activation", "addTo"]);
const NORMS: ReadonlySet<string> = new Set<keyof NonNullable<LinearFusion["norm"]>>(["weight", "eps"]);

/** The kernels have what surrounds this product; what they do not know, they must not ignore. */
export function canFuse(fusion: LinearFusion): boolean {
  return knows(fusion, FUSIONS) && (fusion.norm === undefined || knows(fusion.norm, NORMS));
}

/** The kernels have this weight's form. */
export function canMultiply(weight: Weight): weight is Multiplied {
  if (weight.shape[1] > layout.MAX_INPUTS) return false;
  if (weight.format === "fp8") return weight.blockColumns % 4 === 0 || weight.blockColumns >= weight.shape[1];
  return ["dense", "grouped", "mxfp4", "superblocks"].includes(weight.format);
}

/** Products [m, n] = [m, k] · [n, k]ᵀ. */
export interface ProductShape {
  readonly m: number;
  readonly n: number;
  readonly k: number;
}

/** A product with what surrounds it; see `Backend.linear`. */
export function multiply(
  pool: ThreadPool,
  operands: Operands,
  out: Tensor,
  x: Tensor,
  plan: ProductPlan,
  { m, n, k }: ProductShape,
  { norm, bias, activation, addTo }: MultiplyFusion,
): void {
  const { place } = operands;
  const { form, routines, inputs } = plan;
  const isGated = activation?.gated ?? false;
  const outputs = isGated ? n / 2 : n;
  const mostPrepared = Math.max(1, Math.floor(INPUT_BYTES / (4 * k)));
  const atATime = Math.min(mostPrepared, operands.rowsAtATime(x, out, addTo));
  const kind = activation === undefined ? layout.NO_ACTIVATION : ACTIVATIONS[activation.kind];
  const offsets = operands.optional("bias", bias);
  const gamma = operands.optional("norm", norm?.weight);
  for (let first = 0; first < m; first += atATime) {
    const tokens = Math.min(atATime, m - first);
    const input = operands.read("x", x.rows(first, first + tokens));
    const prepared = inputs.isPrepared
      ? prepare(pool, operands, input, plan, tokens, k, gamma, norm?.eps ?? 0)
      : { x: input, scales: 0 };
    const result = operands.write("out", out.rows(first, first + tokens));
    const addend = operands.optional("addTo", addTo?.rows(first, first + tokens));
    const macs = tokens * n * k;
    const unitRows = rowsOfUnit(outputs, macs, pool.threads);
    pool.run(place, {
      kernel: layout.MULTIPLY,
      units: Math.ceil(outputs / unitRows),
      work: macs,
      write: (args) => {
        args.words(layout.OUT, result.address, prepared.x, inputs.stride, prepared.scales);
        args.words(layout.TOKENS, tokens, n, outputs, k);
        form.write(args);
        args.words(layout.ONE, ...routines);
        args.words(layout.BIAS, offsets, addend, kind, Number(isGated), unitRows);
        if (activation?.kind !== "limited_swiglu") return;
        args.float(layout.ALPHA, activation.alpha);
        args.float(layout.LIMIT, activation.limit);
      },
    });
    result.done();
  }
}

/** Inputs as the product reads them, in scratch memory. @param gamma address of the norm's weight, 0 for none */
function prepare(
  pool: ThreadPool,
  operands: Operands,
  x: number,
  { form, inputs }: ProductPlan,
  tokens: number,
  k: number,
  gamma: number,
  eps: number,
) {
  const { isInteger, isSplit, stride, blocks } = inputs;
  const prepared = operands.scratch("inputs", tokens * stride);
  const recordBytes = form.bits === 4 ? layout.NIBBLE_SCALES : layout.BLOCK_SCALES;
  const scales = isInteger ? operands.scratch("input scales", recordBytes * tokens * blocks) : 0;
  pool.run(operands.place, {
    kernel: isInteger ? layout.PREPARE_INTEGERS : layout.PREPARE_FLOATS,
    units: tokens,
    work: tokens * k * (isInteger ? 8 : 1),
    write: (args) => {
      args.words(0, x, prepared, stride, k, gamma);
      args.float(5, eps);
      args.words(6, scales, form.inputs, form.bits, form.permutation, Number(isSplit));
    },
  });
  return { x: prepared, scales };
}

/** Rows of a matrix that one unit multiplies: whole panels, enough for its time to count, and as many units for one thread as for another. */
function rowsOfUnit(outputs: number, work: number, threads: number): number {
  const worthwhile = Math.max(1, Math.floor(work / UNIT_WORK));
  const rounds = Math.min(UNITS_OF_THREAD, Math.floor(worthwhile / threads));
  const units = rounds === 0 ? worthwhile : rounds * threads;
  return layout.PANEL_ROWS * Math.max(1, Math.ceil(outputs / layout.PANEL_ROWS / units));
}
