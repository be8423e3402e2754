import type { LinearActivation, LinearFusion } from "../../backend.ts";
import type { Tensor } from "../../tensor.ts";
import type { DenseWeight } from "../../weight.ts";
import type { KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit, Macros } from "../kernel-source.ts";
import { ACTIVATION_CODES, ACTIVATION_CONSTANTS } from "./activation.ts";
import { KernelVariants, VECTOR_BYTES, WARP } from "./kernel-variants.ts";
import { BOX_COLUMNS, ROW_GROUP, type TensorMapOptions, TensorMaps } from "./tensor-maps.ts";

/** Fewer tokens leave most of a tile empty. */
const MIN_TOKENS = 257;
/** From so many tokens on every product that the kernel can take is its own; see `LargeLinear.launch`. */
export const LARGE_ALWAYS_TOKENS = 2048;
/** Inputs of a product that takes as long as what cuBLASLt leaves to other kernels. Measured: 256 to 400. */
const GLUE_INPUTS = 384;

/** Tokens of a CTA's tile: 64 for each of two warpgroups that multiply; one more warpgroup fetches. */
const LARGE_TOKENS = 128;
const WARPGROUPS = 3;
/** CTAs of a cluster, which share a tile of the weight. */
const CLUSTER = 2;
/** Columns of a step. */
const LARGE_K_TILE = BOX_COLUMNS;
/** Pairs of token tiles that are computed together. */
const LARGE_GROUP = 4;
/** Room for barriers. */
const LARGE_CONTROL_BYTES = 256;

const LINEAR_LARGE = {
  file: "linear_large.cu",
  constants: {
    ...{ LARGE_TOKENS, LARGE_K_TILE, LARGE_GROUP, LARGE_CONTROL_BYTES },
    ...ACTIVATION_CONSTANTS,
  },
  entry: "linear_large",
  pointers: ["out", "x_map", "weight_map", "bias"],
  scalars: ["tokens", "inputs", "outputs"],
} as const;

/** Rows of the weight in a tile, and the steps that fit in shared memory beside each other. */
const TILES = [
  { outputs: 256, stages: 4 },
  { outputs: 192, stages: 5 },
] as const;
type Tile = (typeof TILES)[number];

export interface LargeLinearOptions extends KernelOptions, TensorMapOptions {
  readonly smCount: number;
}

/** Parameters that a kernel is specialised by. */
interface LargeVariant {
  readonly tile: Tile;
  readonly activation: LinearActivation;
  readonly bias: boolean;
}

/** Products of many tokens with the activation of their result in one kernel, on Hopper: `linear_large.cu`. */
export class LargeLinear {
  readonly #kernels: KernelVariants<typeof LINEAR_LARGE>;
  readonly #maps: TensorMaps;

  constructor(
    library: KernelLibrary,
    private readonly options: LargeLinearOptions,
  ) {
    this.#kernels = new KernelVariants(library, LINEAR_LARGE, options.dtype, options);
    this.#maps = new TensorMaps(options);
  }

  /** Units for products by [rows, inputs] with this activation; none if the kernel cannot take them. */
  units(rows: number, inputs: number, activation: LinearActivation): KernelUnit[] {
    if (!takes(activation.gated ? rows / 2 : rows, inputs)) return [];
    return TILES.map((tile) => this.#kernels.unit(defines({ tile, activation, bias: false })));
  }

  /**
   * Enqueues `Backend.linear`, whose checks have passed, of an x that is normalised already, if it is one that the kernel can
   * take and is the fastest for; else false. That is so where tiles are not too empty for what they save: beside products of
   * K inputs an activation weighs as much as `GLUE_INPUTS` / K of them. From `LARGE_ALWAYS_TOKENS` on it always is so, so that a
   * product twice as wide as its result needs memory for no more tokens than that. The first use of a matrix allocates and
   * uploads, which capturing forbids.
   */
  launch(
    stream: number,
    out: Tensor,
    x: Tensor,
    weight: DenseWeight,
    { norm, bias, activation, addTo }: LinearFusion,
  ): boolean {
    const [tokens, outputs] = [out.dim(0), out.dim(1)];
    const [rows, inputs] = weight.shape;
    if (tokens < MIN_TOKENS || activation === undefined || norm !== undefined || addTo !== undefined)
      return false;
    if (!takes(outputs, inputs)) return false;
    for (const { address } of [out, x, weight.data, ...(bias === undefined ? [] : [bias])])
      if (address % VECTOR_BYTES !== 0) return false;
    const { smCount } = this.options;
    const costs = TILES.map((tile) => costOf(tile, tokens, rows, smCount));
    const tile = TILES[costs[1]! < costs[0]! ? 1 : 0];
    const ideal = (tokens * rows) / (LARGE_TOKENS * smCount);
    const bearable = ideal * (1 + GLUE_INPUTS / inputs);
    if (tokens < LARGE_ALWAYS_TOKENS && Math.min(...costs) > bearable) return false;

    // Maps for both, at once: later there may be no memory left.
    const maps = TILES.map((each) => this.#maps.ofWeight(weight.data, each.outputs / CLUSTER));
    const variant = { tile, activation, bias: bias !== undefined };
    const blocks = Math.min(blocksOf(tile, tokens, rows), Math.floor(smCount / CLUSTER) * CLUSTER);
    const stageBytes = (LARGE_TOKENS + tile.outputs) * LARGE_K_TILE * 2;
    const sharedBytes = tile.stages * stageBytes + LARGE_CONTROL_BYTES;
    this.#kernels
      .get(keyOf(variant), defines(variant))
      .launch(stream, blocks, 1, 1, WARPGROUPS * 4 * WARP, sharedBytes, {
        ...{ out, bias: bias ?? null, tokens, inputs, outputs },
        x_map: this.#maps.ofRows(x, LARGE_TOKENS),
        weight_map: maps[TILES.indexOf(tile)]!,
      });
    return true;
  }
}

/** True if results of so many columns, of so many inputs, are whole steps and groups. */
function takes(outputs: number, inputs: number): boolean {
  return inputs % LARGE_K_TILE === 0 && outputs % ROW_GROUP === 0;
}

/** Tiles of a product, those of tokens in whole clusters. */
function blocksOf({ outputs }: Tile, tokens: number, rows: number): number {
  return Math.ceil(tokens / (LARGE_TOKENS * CLUSTER)) * CLUSTER * Math.ceil(rows / outputs);
}

/** Rows of the weight that a multiprocessor multiplies by, the slowest of them, for a tile of tokens each. */
function costOf(tile: Tile, tokens: number, rows: number, smCount: number): number {
  return Math.ceil(blocksOf(tile, tokens, rows) / smCount) * tile.outputs;
}

function keyOf({ tile, activation, bias }: LargeVariant): number {
  return (
    (tile.outputs * 4 + ACTIVATION_CODES[activation.kind]) * 4 + (activation.gated ? 1 : 0) + (bias ? 2 : 0)
  );
}

function defines({ tile, activation, bias }: LargeVariant): Macros {
  return {
    ...{ TILE_OUTPUTS: tile.outputs, STAGES: tile.stages },
    ...{ GATED: activation.gated ? 1 : 0, BIAS: bias ? 1 : 0 },
    ACTIVATION: ACTIVATION_CODES[activation.kind],
  };
}
