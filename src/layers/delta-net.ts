import { channelsOf, type DeltaNetShape, type DeltaNetSpec, type StateCache } from "../backend/delta-net.ts";
import type { Tensor } from "../backend/tensor.ts";
import type { ParameterSpec } from "../base/parameter-spec.ts";
import { lengthOf, type Shard, shareOf } from "../base/shard.ts";
import type { ForwardContext } from "./forward-context.ts";
import { Linear, type LinearInput, type Projection } from "./linear.ts";
import { RmsNorm } from "./norm.ts";
import type { Parameters } from "./parameters.ts";

export interface DeltaNetLayerShape {
  readonly hiddenSize: number;
  /** Of the whole model. */
  readonly deltaNet: DeltaNetShape;
  readonly rmsNormEps: number;
  /**
   * The checkpoint's projections: `in_proj_qkv`, `in_proj_z`, `in_proj_b` and `in_proj_a`; or `in_proj_qkvz` and `in_proj_ba`, whose
   * rows are those of each key head together.
   */
  readonly projections: "apart" | "by key head";
}

/** Linear attention by the gated delta rule, over a state that each sequence has in place of keys and values. Ranks divide the heads. */
export class GatedDeltaNet {
  readonly #projections: Linear;
  readonly #gates: Linear;
  readonly #output: Linear;
  readonly #spec: DeltaNetSpec;

  /** @param source the checkpoint's name of the block, e.g. `model.layers.0.linear_attn`. */
  constructor(parameters: Parameters, name: string, source: string, shape: DeltaNetLayerShape) {
    const { hiddenSize, deltaNet, rmsNormEps } = shape;
    const { numValueHeads, valueDim } = deltaNet;
    const { projected, gates } = projectionsOf(source, shape);
    const linear = (part: string, projections: readonly Projection[], exact = false) =>
      new Linear(parameters, `${name}.${part}`, {
        ...{ inputSize: hiddenSize, projections, split: "columns", bias: false, exact },
      });
    this.#projections = linear("projections", projected);
    this.#gates = linear("gates", gates, true);
    this.#output = new Linear(parameters, `${name}.output`, {
      inputSize: numValueHeads * valueDim,
      projections: [{ source: `${source}.out_proj`, units: hiddenSize }],
      ...{ split: "rows", bias: false },
    });
    const perHead = (part: string, from: string): ParameterSpec => {
      const { start, end } = shareOf(numValueHeads, parameters.shard);
      return {
        ...{ name: `${name}.${part}`, shape: [end - start], dtype: "float32", dummy: "zeros" },
        sources: [{ name: `${source}.${from}`, shape: [numValueHeads], slice: { dim: 0, start, end } }],
      };
    };
    this.#spec = {
      ...shareOfHeads(deltaNet, parameters.shard),
      convolution: parameters.get(convolutionSpec(name, source, deltaNet, parameters.shard)),
      decayLog: parameters.get(perHead("decayLog", "A_log")),
      timeBias: parameters.get(perHead("timeBias", "dt_bias")),
      norm: new RmsNorm(parameters, `${name}.norm`, `${source}.norm`, valueDim, rmsNormEps),
    };
  }

  /** The state that a sequence has in this layer, of this rank. */
  get stateShape(): DeltaNetShape {
    const { numKeyHeads, numValueHeads, keyDim, valueDim, convWidth } = this.#spec;
    return { numKeyHeads, numValueHeads, keyDim, valueDim, convWidth };
  }

  /** residual[T, H] += what the rule gives for x[T, H]; the rows' states in `cache` go on by their tokens. */
  addTo(context: ForwardContext, residual: Tensor, x: LinearInput, cache: StateCache): void {
    const { backend, workspace, batch } = context;
    const { numValueHeads, valueDim } = this.#spec;
    const [tokens, { dtype }] = [residual.dim(0), residual];
    const projected = workspace.tensor("deltaNetInput", dtype, [tokens, this.#projections.outputSize]);
    this.#projections.forward(context, projected, x);
    const gates = workspace.tensor("deltaNetGates", "float32", [tokens, 2 * numValueHeads]);
    this.#gates.forward(context, gates, x);
    const out = workspace.tensor("attended", dtype, [tokens, numValueHeads * valueDim]);
    backend.deltaNet(out, projected, gates, cache, batch, this.#spec);
    this.#output.addTo(context, residual, out);
  }
}

/** The part of the heads that a rank has. */
export function shareOfHeads(shape: DeltaNetShape, shard: Shard): DeltaNetShape {
  const held = (heads: number) => lengthOf(shareOf(heads, shard));
  return { ...shape, numKeyHeads: held(shape.numKeyHeads), numValueHeads: held(shape.numValueHeads) };
}

/** Queries, keys, values and z; and b and a of each value head. */
function projectionsOf(
  source: string,
  { deltaNet, projections }: DeltaNetLayerShape,
): { readonly projected: readonly Projection[]; readonly gates: readonly Projection[] } {
  const { numKeyHeads, numValueHeads, keyDim, valueDim } = deltaNet;
  const [keys, group] = [numKeyHeads * keyDim, numValueHeads / numKeyHeads];
  if (projections === "by key head") {
    const stack = (name: string, sizes: readonly number[]): Projection[] => {
      const stride = sizes.reduce((sum, size) => sum + size, 0);
      return sizes.map((unitSize, i) => {
        const start = sizes.slice(0, i).reduce((sum, size) => sum + size, 0);
        const within = { rows: numKeyHeads * stride, start, stride };
        return { source: `${source}.${name}`, units: numKeyHeads, unitSize, within };
      });
    };
    const values = group * valueDim;
    return {
      projected: stack("in_proj_qkvz", [keyDim, keyDim, values, values]),
      gates: stack("in_proj_ba", [group, group]),
    };
  }
  const rows = channelsOf(deltaNet);
  const part = (start: number, units: number, unitSize: number): Projection => {
    const within = { rows, start, stride: unitSize };
    return { source: `${source}.in_proj_qkv`, units, unitSize, within };
  };
  return {
    projected: [
      part(0, numKeyHeads, keyDim),
      part(keys, numKeyHeads, keyDim),
      part(2 * keys, numValueHeads, valueDim),
      { source: `${source}.in_proj_z`, units: numValueHeads, unitSize: valueDim },
    ],
    gates: ["in_proj_b", "in_proj_a"].map((name) => ({ source: `${source}.${name}`, units: numValueHeads })),
  };
}

/** The convolution's weights of the channels of this rank's heads. */
function convolutionSpec(name: string, source: string, deltaNet: DeltaNetShape, shard: Shard): ParameterSpec {
  const { numKeyHeads, numValueHeads, keyDim, valueDim, convWidth } = deltaNet;
  const parts = [
    { first: 0, heads: numKeyHeads, dim: keyDim },
    { first: numKeyHeads * keyDim, heads: numKeyHeads, dim: keyDim },
    { first: 2 * numKeyHeads * keyDim, heads: numValueHeads, dim: valueDim },
  ];
  return {
    ...{ name: `${name}.convolution`, dummy: "normal" },
    shape: [channelsOf(shareOfHeads(deltaNet, shard)), convWidth],
    sources: parts.map(({ first, heads, dim }) => {
      const { start, end } = shareOf(heads, shard);
      return {
        ...{ name: `${source}.conv1d.weight`, shape: [channelsOf(deltaNet), 1, convWidth] },
        slice: { dim: 0, start: first + start * dim, end: first + end * dim },
      };
    }),
  };
}
