import { dtypeSize, type FloatDType } from "../../../base/dtype.ts";
import type { TensorMapShape } from "../../../cuda/tensor-map.ts";
import type { LinearFusion } from "../../backend.ts";
import type { Tensor } from "../../tensor.ts";
import type { DenseWeight } from "../../weight.ts";
import type { Kernel, KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit, Macros } from "../kernel-source.ts";
import { ACTIVATION_CODES, ACTIVATION_CONSTANTS } from "./activation.ts";
import { encodeHostMap, type HostMap, HostMaps, InputMaps, K_BLOCK } from "./host-maps.ts";
import { type ArgumentsOf, KernelVariants, VECTOR_BYTES, WARP } from "./kernel-variants.ts";

/** Weight rows of a warpgroup, and of a piece of a tensor map. */
export const GROUP_ROWS = 64;
export const PIECE_ROWS = 16;
const WARPGROUP = 4 * WARP;
/** Warps that fetch. */
const FETCH_WARPS = 2;
/** Bytes of a multiprocessor's shared memory that the driver keeps for each block. */
const RESERVED_BYTES = 1024;
/** Alignment and single barriers. */
const SLACK_BYTES = 64;
/** Tokens of a tile up to which weights are the more to fetch. */
const WIDE_TOKENS = 128;
/** More features than a matrix has, and more rows than a box. */
const FEATURES_LIMIT = 2 ** 22;
const ROWS_LIMIT = 2 ** 8;

const LINEAR_WGMMA = {
  file: "linear_wgmma.cu",
  constants: ACTIVATION_CONSTANTS,
  entry: "linear_wgmma",
  values: ["weight_map", "x_map"],
  pointers: ["out", "gamma", "bias", "residual"],
  scalars: ["tokens", "outputs", "row_tiles", "k_tiles", "eps"],
} as const;

export interface WgmmaLinearOptions extends KernelOptions {
  readonly smCount: number;
  /** Bytes of shared memory: most of a block, and of a multiprocessor. */
  readonly sharedBytesPerBlock: number;
  readonly sharedBytesPerSm: number;
  readonly encodeTensorMap: (shape: TensorMapShape) => Uint8Array;
}

/** The cut of a product; see `linear_wgmma.cu`. */
export interface WgmmaTile {
  /** Warpgroups of a CTA, each of 64 weight rows. */
  readonly groups: 1 | 2;
  /** Tokens of a CTA: a multiple of 16, at most 128, or 256 of 8 bits. */
  readonly tokens: number;
  readonly rowCluster: number;
  readonly tokenCluster: number;
  readonly splits: number;
  /** Swizzled rows of 64 columns of a stage. */
  readonly kBlocks: 1 | 2;
  /** CTAs that fit a multiprocessor. */
  readonly residency: 1 | 2;
}

/** A product without its number of tokens. */
export interface WgmmaShape {
  /** N of weight[N, K], both halves of a gated one. */
  readonly outFeatures: number;
  readonly inFeatures: number;
  readonly norm: boolean;
  readonly gated: boolean;
  /** Code of the activation; −1 for none. */
  readonly activation: number;
  readonly floatOut: boolean;
}

/** The rings of a tile, and all shared memory of a CTA. */
export interface Stages {
  readonly weightStages: number;
  readonly inputStages: number;
  readonly sharedBytes: number;
}

/** A tile of a product of a shape, ready to launch. */
export interface WgmmaPlan {
  readonly tile: WgmmaTile;
  readonly shape: WgmmaShape;
  readonly sharedBytes: number;
  readonly kernel: Kernel<ArgumentsOf<typeof LINEAR_WGMMA>>;
}

/** Products of some ten to some hundred tokens with what surrounds them in one kernel, on Hopper: `linear_wgmma.cu`. */
export class WgmmaLinear {
  readonly #kernels: KernelVariants<typeof LINEAR_WGMMA>;
  readonly #weightMaps = new HostMaps();
  readonly #inputs: InputMaps;

  constructor(
    library: KernelLibrary,
    private readonly dtype: FloatDType,
    private readonly options: WgmmaLinearOptions,
  ) {
    this.#kernels = new KernelVariants(library, LINEAR_WGMMA, dtype, options);
    this.#inputs = new InputMaps(dtype, options.encodeTensorMap);
  }

  /** The shape of a product whose checks have passed. */
  static shapeOf(out: Tensor, weight: DenseWeight, { norm, activation }: LinearFusion): WgmmaShape {
    const [outFeatures, inFeatures] = weight.shape;
    return {
      ...{ outFeatures, inFeatures, norm: norm !== undefined, gated: activation?.gated ?? false },
      activation: activation === undefined ? -1 : ACTIVATION_CODES[activation.kind],
      floatOut: out.dtype === "float32",
    };
  }

  /** Units for a shape in such tiles; none where the kernel cannot take it. */
  units(tile: WgmmaTile, shape: WgmmaShape): KernelUnit[] {
    const stages = stagesOf(tile, shape, this.options);
    return stages === undefined ? [] : [this.#kernels.unit(tileDefines(tile, shape, stages))];
  }

  /** A shape in such tiles, with its kernel loaded; undefined where the kernel cannot take it. */
  plan(tile: WgmmaTile, shape: WgmmaShape): WgmmaPlan | undefined {
    const stages = stagesOf(tile, shape, this.options);
    if (stages === undefined) return undefined;
    const kernel = this.#kernels.of(tileDefines(tile, shape, stages));
    return { tile, shape, sharedBytes: stages.sharedBytes, kernel };
  }

  /** Enqueues `Backend.linear`, whose checks have passed, of a plan's shape and `aligned` operands. */
  launch(
    stream: number,
    plan: WgmmaPlan,
    out: Tensor,
    x: Tensor,
    weight: DenseWeight,
    fusion: LinearFusion,
  ): void {
    const { tile, shape } = plan;
    const tokens = x.dim(0);
    const { outFeatures, inFeatures, gated } = shape;
    const { rowCluster, tokenCluster, splits } = tile;
    const rows = GROUP_ROWS * tile.groups;
    const rowTiles = outFeatures / rows;
    const tokenTiles = Math.ceil(tokens / tile.tokens / tokenCluster) * tokenCluster;
    const resident = Math.floor((this.options.smCount * tile.residency) / (tokenTiles * splits));
    const rounds = splits > 1 ? 1 : Math.ceil(rowTiles / Math.max(rowCluster, resident));
    const columns = Math.ceil(rowTiles / rounds / rowCluster) * rowCluster;
    plan.kernel.launch(stream, columns, tokenTiles, splits, threadsOf(tile, shape), plan.sharedBytes, {
      weight_map: this.#weightMap(weight.data.address, shape, rows / tokenCluster),
      x_map: this.#inputs.map(x.address, tokens, inFeatures, tile.tokens / rowCluster),
      ...{
        out,
        gamma: fusion.norm?.weight ?? null,
        bias: fusion.bias ?? null,
        residual: fusion.addTo ?? null,
      },
      ...{ tokens, outputs: gated ? outFeatures / 2 : outFeatures, row_tiles: rowTiles },
      k_tiles: inFeatures / (K_BLOCK * tile.kBlocks),
      eps: fusion.norm?.eps ?? 0,
    });
  }

  #weightMap(address: number, shape: WgmmaShape, boxRows: number): HostMap {
    const { outFeatures, inFeatures, gated } = shape;
    const features = outFeatures * FEATURES_LIMIT + inFeatures;
    return this.#weightMaps.get(address, (features * ROWS_LIMIT + boxRows) * 2 + (gated ? 1 : 0), () => {
      const rowBytes = inFeatures * dtypeSize(this.dtype);
      const half = PIECE_ROWS / 2;
      // Pieces of 16 rows: neighbours, or 8 of each half.
      const strides = gated
        ? [rowBytes, (outFeatures / 2) * rowBytes, half * rowBytes]
        : [rowBytes, half * rowBytes, PIECE_ROWS * rowBytes];
      return encodeHostMap(this.dtype, this.options.encodeTensorMap, {
        address,
        extents: [inFeatures, half, 2, outFeatures / PIECE_ROWS],
        strides,
        box: [K_BLOCK, half, 2, boxRows / PIECE_ROWS],
      });
    });
  }
}

/**
 * The rings of a product in such tiles, as linear_tile.cuh has them; undefined where it cannot be cut so.
 * @param extraBytes what else the kernel has in shared memory
 */
export function stagesOf(
  tile: WgmmaTile,
  { outFeatures, inFeatures, norm, gated, floatOut }: WgmmaShape,
  { sharedBytesPerBlock, sharedBytesPerSm, smCount }: WgmmaLinearOptions,
  extraBytes = 0,
): Stages | undefined {
  const { groups, tokens, rowCluster, tokenCluster, splits, residency, kBlocks } = tile;
  const columns = K_BLOCK * kBlocks;
  const rows = GROUP_ROWS * groups;
  const rowTiles = outFeatures / rows;
  if (inFeatures % columns !== 0 || !Number.isInteger(rowTiles) || rowTiles % rowCluster !== 0)
    return undefined;
  if (tokens % (8 * rowCluster) !== 0 || rows % (PIECE_ROWS * tokenCluster) !== 0) return undefined;
  const kTiles = inFeatures / columns;
  if (kTiles < splits || rowCluster * tokenCluster * splits > 8) return undefined;
  const most = Math.min(sharedBytesPerBlock, Math.floor(sharedBytesPerSm / residency) - RESERVED_BYTES);
  const weightBytes = rows * columns * 2 + 16;
  const inputBytes = tokens * columns * 2 + 16;
  const ownBlocks = Math.ceil(tokens / 8 / splits);
  const exchange = (splits - 1) * ownBlocks * groups * WARPGROUP * 16;
  const staged = (splits > 1 || floatOut ? 1 : ownBlocks * 8) * ((gated ? rows : 2 * rows) + 16);
  const squares = norm ? inFeatures * 2 + rowCluster * splits * tokens * 4 : 0;
  const fixed = exchange + staged + squares + extraBytes + SLACK_BYTES;
  const room = most - fixed;
  // A CTA with one tile needs no more stages than that has.
  const once = splits > 1 || rowTiles * rowCluster <= smCount;
  const used = once ? Math.ceil(kTiles / splits) : 64;
  if (tokens > WIDE_TOKENS) {
    // As much of x as of weights.
    const stages = Math.max(2, Math.min(used, Math.floor(room / (weightBytes + inputBytes))));
    const sharedBytes = fixed + stages * (weightBytes + inputBytes);
    return sharedBytes > most ? undefined : { weightStages: stages, inputStages: stages, sharedBytes };
  }
  let inputStages = Math.ceil((tokens > 64 ? (residency === 1 ? 6 : 4) : tokens > 32 ? 6 : 8) / kBlocks);
  inputStages = Math.max(2, Math.min(inputStages, used));
  const weightStages = Math.max(
    2,
    Math.min(used, Math.floor((room - inputStages * inputBytes) / weightBytes)),
  );
  const sharedBytes = fixed + inputStages * inputBytes + weightStages * weightBytes;
  return sharedBytes > most ? undefined : { weightStages, inputStages, sharedBytes };
}

/** True if the kernel can address the operands. */
export function aligned(out: Tensor, x: Tensor, weight: DenseWeight, { norm, addTo }: LinearFusion): boolean {
  const all = [out, x, weight.data, norm?.weight, addTo];
  return all.every((tensor) => tensor === undefined || tensor.address % VECTOR_BYTES === 0);
}

export function threadsOf(tile: WgmmaTile, { norm }: WgmmaShape): number {
  return tile.groups * WARPGROUP + (FETCH_WARPS + (norm ? squareWarps(tile) : 0)) * WARP;
}

/** Warps that find the squares of a norm: four where registers are left for them. */
function squareWarps({ groups, tokens, residency }: WgmmaTile): number {
  return tokens > 64 && groups === 1 && residency === 1 ? 4 : 2;
}

/** Macros of linear_tile.cuh and tile_outputs.cuh. */
export function tileDefines(
  tile: WgmmaTile,
  { inFeatures, norm, gated, activation, floatOut }: WgmmaShape,
  { weightStages, inputStages, sharedBytes }: Stages,
): Macros {
  const { groups, tokens, rowCluster, tokenCluster, splits, residency, kBlocks } = tile;
  return {
    ...{ GROUPS: groups, TOKENS: tokens, WEIGHT_STAGES: weightStages, X_STAGES: inputStages },
    ...{ MIN_CTAS: residency, ROW_CLUSTER: rowCluster, TOKEN_CLUSTER: tokenCluster, SPLITS: splits },
    ...{ NORM: norm ? 1 : 0, GATED: gated ? 1 : 0, ACTIVATION: activation, OUT_FLOAT: floatOut ? 1 : 0 },
    ...{ K_BLOCKS: kBlocks, SQUARERS: squareWarps(tile), QUANTISED: 0 },
    ...{ MAX_K: norm ? inFeatures : 0, LINEAR_SHARED_BYTES: sharedBytes },
  };
}
