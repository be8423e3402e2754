import type { FloatDType } from "../base/dtype.ts";
import type { RmsNormSpec } from "./linear-fusion.ts";
import { check, disjoint, refuse } from "./operand-checks.ts";
import type { Tensor } from "./tensor.ts";

/**
 * The ops of layers that keep a state of fixed size for each sequence in place of keys and values, part of `Backend`. HK key heads of
 * DK dimensions, HV value heads of DV; C = 2·HK·DK + HV·DV channels of a convolution over W tokens; S slots, of which each running
 * sequence has one; L layers with a state.
 */
export interface DeltaNetOps {
  /**
   * out[T, HV·DV]: the gated delta rule (Yang et al. 2024) on the packed projections projected[T, C + HV·DV] (queries, keys, values,
   * and the output's gate z) and gates float32 [T, 2·HV] (b of each value head, then a of each) of a ragged batch.
   *
   * Each channel of queries, keys and values is convolved with its weights over the token and the W − 1 before it in its sequence, and
   * goes through silu. Queries and keys are divided by their heads' norms (the root of the sum of squares and 1e-6), queries also by
   * √DK. Value head h has the queries q and keys k of head ⌊h · HK / HV⌋, and for each token, with
   * decay = exp(−exp(decayLog) · softplus(a + timeBias)) and β = sigmoid(b), its state S[DK, DV] becomes
   *
   *     S ← decay · S;   S ← S + k · (β · (v − Sᵀ·k))ᵀ;   o = Sᵀ·q
   *
   * and the output is norm(o) · silu(z), the norm over the head's DV dimensions. Before a sequence's first token S is 0, and so are the
   * channels. Both are read from the row's slot where the row does not begin its sequence, and left there for the next: no other row
   * of the batch may have the slot, unless all rows of it begin one. Of padding, past the rows' tokens, outputs are undefined.
   */
  deltaNet(
    out: Tensor,
    projected: Tensor,
    gates: Tensor,
    cache: StateCache,
    batch: BatchRows,
    spec: DeltaNetSpec,
  ): void;
  /** x[T, I] = sigmoid(gate[T, I]) · x, in place. */
  gateElements(x: Tensor, gate: Tensor): void;
}

/** The part of `BatchTensors` that the rule reads. */
export interface BatchRows {
  readonly numTokens: number;
  readonly numRows: number;
  readonly decodeRows: number;
  readonly maxQueryLen: number;
  readonly cuSeqlensQ: Tensor;
  readonly contextLens: Tensor;
  readonly rowSlots: Tensor;
}

/** The extents of a layer's gated delta rule, of one rank. */
export interface DeltaNetShape {
  /** HK; divides HV. */
  readonly numKeyHeads: number;
  /** HV. */
  readonly numValueHeads: number;
  /** DK and DV. */
  readonly keyDim: number;
  readonly valueDim: number;
  /** W, at least 2. */
  readonly convWidth: number;
}

/** A layer's gated delta rule: its extents and parameters. */
export interface DeltaNetSpec extends DeltaNetShape {
  /** [C, W]: of each channel the weights of the tokens, its own last. */
  readonly convolution: Tensor;
  /** float32 [HV]. */
  readonly decayLog: Tensor;
  readonly timeBias: Tensor;
  /** Of a value head's outputs, [DV]. */
  readonly norm: RmsNormSpec;
}

/** The states of sequences, in slots, all layers' of one beside each other; and the layer that is meant. */
export interface StateCache {
  /** [S, L, W, C]: the channels of the last W − 1 tokens before they are convolved, those of position p at p mod W. */
  readonly tails: Tensor;
  /** float32 [S, L, HV, DK, DV]. */
  readonly states: Tensor;
  /** Below L. */
  readonly layer: number;
}

/** C: channels that are convolved. */
export function channelsOf({ numKeyHeads, keyDim, numValueHeads, valueDim }: DeltaNetShape): number {
  return 2 * numKeyHeads * keyDim + numValueHeads * valueDim;
}

/** Tokens T, rows R, slots S, channels C and layers L. */
export function checkDeltaNet(
  dtype: FloatDType,
  out: Tensor,
  projected: Tensor,
  gates: Tensor,
  { tails, states, layer }: StateCache,
  batch: BatchRows,
  spec: DeltaNetSpec,
) {
  const op = "deltaNet";
  const { numKeyHeads, numValueHeads, keyDim, valueDim, convWidth } = spec;
  if (numValueHeads % numKeyHeads !== 0) refuse(op, `${numValueHeads} value heads over ${numKeyHeads}`);
  if (!(convWidth >= 2)) refuse(op, `a convolution over ${convWidth} tokens`);
  const channels = channelsOf(spec);
  check(op, "projected", projected, dtype, "T", channels + numValueHeads * valueDim);
  const tokens = projected.dim(0);
  if (batch.numTokens !== tokens) refuse(op, `batch of ${batch.numTokens} tokens, projected of ${tokens}`);
  check(op, "gates", gates, "float32", tokens, 2 * numValueHeads);
  check(op, "out", out, dtype, tokens, numValueHeads * valueDim);
  check(op, "tails", tails, dtype, "S", "L", convWidth, channels);
  const [slots, layers] = [tails.dim(0), tails.dim(1)];
  check(op, "states", states, "float32", slots, layers, numValueHeads, keyDim, valueDim);
  if (!(layer >= 0 && layer < layers)) refuse(op, `layer ${layer} of ${layers}`);
  check(op, "convolution", spec.convolution, dtype, channels, convWidth);
  check(op, "decayLog", spec.decayLog, "float32", numValueHeads);
  check(op, "timeBias", spec.timeBias, "float32", numValueHeads);
  check(op, "norm.weight", spec.norm.weight, dtype, valueDim);
  check(op, "cuSeqlensQ", batch.cuSeqlensQ, "int32", batch.numRows + 1);
  check(op, "contextLens", batch.contextLens, "int32", batch.numRows);
  check(op, "rowSlots", batch.rowSlots, "int32", batch.numRows);
  if (batch.decodeRows > batch.numRows) refuse(op, `${batch.decodeRows} decode rows of ${batch.numRows}`);
  disjoint(op, out, { projected, gates, tails, states });
  return { tokens, rows: batch.numRows, slots, layers, channels };
}

export function checkGateElements(dtype: FloatDType, x: Tensor, gate: Tensor) {
  const op = "gateElements";
  check(op, "x", x, dtype, "T", "I");
  check(op, "gate", gate, dtype, x.dim(0), x.dim(1));
  disjoint(op, x, { gate }, "x");
  return { count: x.size };
}
