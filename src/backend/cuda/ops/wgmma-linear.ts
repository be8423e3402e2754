import { ptr } from "bun:ffi";
import { dtypeSize, type FloatDType } from "../../../base/dtype.ts";
import type { TensorMapShape } from "../../../cuda/tensor-map.ts";
import type { LinearFusion } from "../../backend.ts";
import type { Tensor } from "../../tensor.ts";
import type { DenseWeight } from "../../weight.ts";
import type { HostValue } from "../argument-packer.ts";
import type { Kernel, KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit, Macros } from "../kernel-source.ts";
import { ACTIVATION_CODES, ACTIVATION_CONSTANTS } from "./activation.ts";
import { type ArgumentsOf, KernelVariants, VECTOR_BYTES, WARP } from "./kernel-variants.ts";

/** Columns of a swizzled row. */
const K_BLOCK = 64;
/** Weight rows of a warpgroup, and of a piece of a tensor map. */
const GROUP_ROWS = 64;
const PIECE_ROWS = 16;
const WARPGROUP = 4 * WARP;
/** Warps that fetch. */
const FETCH_WARPS = 2;
/** Bytes of a multiprocessor's shared memory that the driver keeps for each block. */
const RESERVED_BYTES = 1024;
/** Alignment and single barriers. */
const SLACK_BYTES = 64;
/** Tensor maps at one address that are kept. */
const MAX_MAPS = 512;
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
  /** Tokens of a CTA: a multiple of 16, at most 128. */
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
interface Stages {
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

/** A tensor map, which its bytes keep alive. */
interface HostMap extends HostValue {
  readonly bytes: Uint8Array;
}

/** Products of some ten to some hundred tokens with what surrounds them in one kernel, on Hopper: `linear_wgmma.cu`. */
export class WgmmaLinear {
  readonly #kernels: KernelVariants<typeof LINEAR_WGMMA>;
  readonly #keys = new Map<string, number>();
  /** By address, and then by what else they differ in: numbers, as strings would cost more than the rest of a launch. */
  readonly #weightMaps = new Map<number, Map<number, HostMap>>();
  readonly #inputMaps = new Map<number, Map<number, HostMap>>();

  constructor(
    library: KernelLibrary,
    private readonly dtype: FloatDType,
    private readonly options: WgmmaLinearOptions,
  ) {
    this.#kernels = new KernelVariants(library, LINEAR_WGMMA, dtype, options);
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
    const stages = this.#stages(tile, shape);
    return stages === undefined ? [] : [this.#kernels.unit(defines(tile, shape, stages))];
  }

  /** A shape in such tiles, with its kernel loaded; undefined where the kernel cannot take it. */
  plan(tile: WgmmaTile, shape: WgmmaShape): WgmmaPlan | undefined {
    const stages = this.#stages(tile, shape);
    if (stages === undefined) return undefined;
    const macros = defines(tile, shape, stages);
    const name = JSON.stringify(macros);
    const key = this.#keys.get(name) ?? this.#keys.size;
    this.#keys.set(name, key);
    return { tile, shape, sharedBytes: stages.sharedBytes, kernel: this.#kernels.get(key, macros) };
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
      x_map: this.#inputMap(x.address, tokens, inFeatures, tile.tokens / rowCluster),
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

  /** Undefined where the kernel cannot take the shape in such tiles. */
  #stages(tile: WgmmaTile, shape: WgmmaShape): Stages | undefined {
    const { outFeatures, inFeatures, norm, gated, floatOut } = shape;
    const { groups, tokens, rowCluster, tokenCluster, splits, residency, kBlocks } = tile;
    const columns = K_BLOCK * kBlocks;
    const rows = GROUP_ROWS * groups;
    const rowTiles = outFeatures / rows;
    if (inFeatures % columns !== 0 || !Number.isInteger(rowTiles) || rowTiles % rowCluster !== 0)
      return undefined;
    if (tokens % (8 * rowCluster) !== 0 || rows % (PIECE_ROWS * tokenCluster) !== 0) return undefined;
    const kTiles = inFeatures / columns;
    if (kTiles < splits || rowCluster * tokenCluster * splits > 8) return undefined;
    const { sharedBytesPerBlock, sharedBytesPerSm, smCount } = this.options;
    const most = Math.min(sharedBytesPerBlock, Math.floor(sharedBytesPerSm / residency) - RESERVED_BYTES);
    const weightBytes = rows * columns * 2 + 16;
    const inputBytes = tokens * columns * 2 + 16;
    const ownBlocks = Math.ceil(tokens / 8 / splits);
    const exchange = (splits - 1) * ownBlocks * groups * WARPGROUP * 16;
    const staged = (splits > 1 || floatOut ? 1 : ownBlocks * 8) * ((gated ? rows : 2 * rows) + 16);
    const squares = norm ? inFeatures * 2 + rowCluster * splits * tokens * 4 : 0;
    const room = most - exchange - staged - squares - SLACK_BYTES;
    // A CTA with one tile needs no more stages than that has.
    const once = splits > 1 || rowTiles * rowCluster <= smCount;
    const used = once ? Math.ceil(kTiles / splits) : 64;
    let inputStages = Math.ceil((tokens > 64 ? (residency === 1 ? 6 : 4) : tokens > 32 ? 6 : 8) / kBlocks);
    inputStages = Math.max(2, Math.min(inputStages, used));
    const weightStages = Math.max(
      2,
      Math.min(used, Math.floor((room - inputStages * inputBytes) / weightBytes)),
    );
    const sharedBytes =
      exchange + staged + squares + SLACK_BYTES + inputStages * inputBytes + weightStages * weightBytes;
    return sharedBytes > most ? undefined : { weightStages, inputStages, sharedBytes };
  }

  #weightMap(address: number, shape: WgmmaShape, boxRows: number): HostMap {
    const { outFeatures, inFeatures, gated } = shape;
    const features = outFeatures * FEATURES_LIMIT + inFeatures;
    return remember(
      this.#weightMaps,
      address,
      (features * ROWS_LIMIT + boxRows) * 2 + (gated ? 1 : 0),
      () => {
        const rowBytes = inFeatures * dtypeSize(this.dtype);
        const half = PIECE_ROWS / 2;
        // Pieces of 16 rows: neighbours, or 8 of each half.
        const strides = gated
          ? [rowBytes, (outFeatures / 2) * rowBytes, half * rowBytes]
          : [rowBytes, half * rowBytes, PIECE_ROWS * rowBytes];
        return this.#encode({
          address,
          extents: [inFeatures, half, 2, outFeatures / PIECE_ROWS],
          strides,
          box: [K_BLOCK, half, 2, boxRows / PIECE_ROWS],
        });
      },
    );
  }

  #inputMap(address: number, tokens: number, inFeatures: number, boxRows: number): HostMap {
    const extents = tokens * FEATURES_LIMIT + inFeatures;
    return remember(this.#inputMaps, address, extents * ROWS_LIMIT + boxRows, () =>
      this.#encode({
        address,
        extents: [inFeatures, tokens],
        strides: [inFeatures * dtypeSize(this.dtype)],
        box: [K_BLOCK, boxRows],
      }),
    );
  }

  #encode(shape: Omit<TensorMapShape, "dtype">): HostMap {
    const dtype = this.dtype === "float16" ? "float16" : "bfloat16";
    const bytes = this.options.encodeTensorMap({ dtype, ...shape });
    return { bytes, hostAddress: ptr(bytes) };
  }
}

/** True if the kernel can address the operands. */
export function aligned(out: Tensor, x: Tensor, weight: DenseWeight, { norm, addTo }: LinearFusion): boolean {
  const all = [out, x, weight.data, norm?.weight, addTo];
  return all.every((tensor) => tensor === undefined || tensor.address % VECTOR_BYTES === 0);
}

/** The map of a key at an address, made when it is first asked for. */
function remember(
  maps: Map<number, Map<number, HostMap>>,
  address: number,
  key: number,
  make: () => HostMap,
) {
  let known = maps.get(address);
  if (known === undefined || known.size >= MAX_MAPS) {
    known = new Map();
    maps.set(address, known);
  }
  let map = known.get(key);
  if (map === undefined) {
    map = make();
    known.set(key, map);
  }
  return map;
}

function threadsOf(tile: WgmmaTile, { norm }: WgmmaShape): number {
  return tile.groups * WARPGROUP + (FETCH_WARPS + (norm ? squareWarps(tile) : 0)) * WARP;
}

/** Warps that find the squares of a norm: four where registers are left for them. */
function squareWarps({ groups, tokens, residency }: WgmmaTile): number {
  return tokens > 64 && groups === 1 && residency === 1 ? 4 : 2;
}

function defines(
  tile: WgmmaTile,
  { inFeatures, norm, gated, activation, floatOut }: WgmmaShape,
  { weightStages, inputStages, sharedBytes }: Stages,
): Macros {
  const { groups, tokens, rowCluster, tokenCluster, splits, residency, kBlocks } = tile;
  return {
    ...{ GROUPS: groups, TOKENS: tokens, WEIGHT_STAGES: weightStages, X_STAGES: inputStages },
    ...{ MIN_CTAS: residency, ROW_CLUSTER: rowCluster, TOKEN_CLUSTER: tokenCluster, SPLITS: splits },
    ...{ NORM: norm ? 1 : 0, GATED: gated ? 1 : 0, ACTIVATION: activation, OUT_FLOAT: floatOut ? 1 : 0 },
    ...{ K_BLOCKS: kBlocks, SQUARERS: squareWarps(tile) },
    ...{ MAX_K: norm ? inFeatures : 0, LINEAR_SHARED_BYTES: sharedBytes },
  };
}
