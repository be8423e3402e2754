import type { FloatDType } from "../../../base/dtype.ts";
import type { LinearFusion } from "../../backend.ts";
import type { Tensor } from "../../tensor.ts";
import type { Kernel } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit, Macros } from "../kernel-source.ts";
import { ACTIVATION_CODES, ACTIVATION_CONSTANTS } from "./activation.ts";
import { encodeHostMap, type HostMap, HostMaps, InputMaps, K_BLOCK } from "./host-maps.ts";
import { type ArgumentsOf, KernelVariants, VECTOR_BYTES, WARP } from "./kernel-variants.ts";
import {
  factorBytes,
  formDefines,
  ORDER_CONSTANTS,
  type QuantisedForm,
  type QuantisedWeight,
  ScaleKind,
  STRIP_ROWS,
} from "./quantised-form.ts";
import { WeightPlans } from "./weight-plans.ts";
import type { WgmmaLinearOptions } from "./wgmma-linear.ts";

/** Tokens that a product can have. */
export const MAX_QUANTISED_TOKENS = 256;
/** The same by superblocks, whose tiles are of 32 tokens: by elements more are multiplied sooner. */
const MAX_SUPERBLOCK_TOKENS = 96;
/** More features than a matrix has. */
const FEATURES_LIMIT = 2 ** 22;
/** Columns of a stage: a whole block of 4-bit codes. */
const K_BLOCKS = 2;
const K_TILE = K_BLOCKS * K_BLOCK;
/** Weight rows of a warpgroup. */
const GROUP_ROWS = 64;
const WARPGROUP = 4 * WARP;
const FETCH_WARPS = 2;
/** Tokens that a tile may have. */
const TILE_TOKENS = [16, 32, 64, 96, 128];
/** Tokens of a tile whose registers suffice: rows have one scale, or sums of 1 or more groups a stage are held apart. */
const WIDEST = { rows: 128, group: 96, groups: 32 } as const;
/** Tokens of a tile of which two fit a multiprocessor; with minima, which have sums of x beside each sum, fewer. */
const RESIDENT_TOKENS = 64;
const RESIDENT_WITH_MINIMA = 16;
/** What the driver keeps of a multiprocessor's shared memory for each block. */
const RESERVED_BYTES = 1024;
/** Of boxes in shared memory. */
const BOX_ALIGNMENT = 128;
/** Alignment of the rings, and barriers. */
const SLACK_BYTES = 3 * 1024;
/** Stages of codes that keep enough on its way. */
const MOST_STAGES = 12;
/** What a tile costs besides its stages, in stages. */
const TILE_COST = 5;

const LINEAR_QUANTISED_WGMMA = {
  file: "linear_quantised_wgmma.cu",
  constants: { ...ORDER_CONSTANTS, ...ACTIVATION_CONSTANTS },
  entry: "linear_quantised_wgmma",
  values: ["weight_map", "x_map"],
  pointers: ["out", "scales", "zeros", "units", "bias", "residual"],
  scalars: ["tokens", "outputs", "inputs", "row_tiles", "group_size", "groups", "block_rows"],
} as const;

/** How a product is cut; see `linear_quantised_wgmma.cu`. */
export interface QuantisedTile {
  /** Tokens of a CTA. */
  readonly tokens: number;
  readonly tokenTiles: number;
  readonly splits: number;
  /** CTAs that fit a multiprocessor. */
  readonly residency: 1 | 2;
  readonly weightStages: number;
  readonly inputStages: number;
  readonly sharedBytes: number;
}

export interface TileShape {
  readonly outFeatures: number;
  readonly inFeatures: number;
  readonly tokens: number;
  readonly gated: boolean;
  readonly floatOut: boolean;
  readonly activation: number;
}

interface Planned {
  readonly tile: QuantisedTile;
  readonly kernel: Kernel<ArgumentsOf<typeof LINEAR_QUANTISED_WGMMA>>;
}

/** Products of some ten to some hundred tokens by quantised weights, on Hopper: `linear_quantised_wgmma.cu`. */
export class QuantisedWgmma {
  readonly #kernels: KernelVariants<typeof LINEAR_QUANTISED_WGMMA>;
  readonly #plans = new WeightPlans<QuantisedWeight, Planned>();
  readonly #inputs: InputMaps;
  readonly #weightMaps = new HostMaps();

  constructor(
    library: KernelLibrary,
    dtype: FloatDType,
    private readonly options: WgmmaLinearOptions,
  ) {
    this.#kernels = new KernelVariants(library, LINEAR_QUANTISED_WGMMA, dtype, options);
    this.#inputs = new InputMaps(dtype, options.encodeTensorMap);
  }

  /** What a product needs compiled: nothing where the kernel cannot take it. */
  units(shape: TileShape, form: QuantisedForm): KernelUnit[] {
    if (!canTake(shape.tokens, shape.outFeatures, shape.inFeatures, form)) return [];
    const tile = planTile(shape, form, this.options);
    return tile === undefined ? [] : [this.#kernels.unit(defines(form, tile, shape))];
  }

  /** Loads what a product of so many tokens launches, which capturing forbids. */
  load(weight: QuantisedWeight, form: QuantisedForm, shape: TileShape): void {
    if (this.takes(shape.tokens, weight, form)) this.#find(weight, form, shape);
  }

  /** Whether the kernel can take products of so many tokens by a weight. */
  takes(tokens: number, { shape: [n, k] }: QuantisedWeight, form: QuantisedForm): boolean {
    return canTake(tokens, n, k, form);
  }

  /** Enqueues `Backend.linear`, whose checks have passed, of an x that is normalised, if the kernel can take it; else false. */
  launch(
    stream: number,
    out: Tensor,
    x: Tensor,
    weight: QuantisedWeight,
    form: QuantisedForm,
    { norm, bias, activation, addTo }: LinearFusion,
  ): boolean {
    const tokens = x.dim(0);
    if (norm !== undefined || !this.takes(tokens, weight, form)) return false;
    for (const tensor of [x, out, addTo])
      if (tensor !== undefined && tensor.address % VECTOR_BYTES !== 0) return false;
    const [outFeatures, inFeatures] = weight.shape;
    const shape = {
      ...{ outFeatures, inFeatures, tokens, gated: activation?.gated ?? false },
      ...{ floatOut: out.dtype === "float32" },
      activation: activation === undefined ? -1 : ACTIVATION_CODES[activation.kind],
    };
    const planned = this.#find(weight, form, shape);
    if (planned === undefined) return false;
    const { tile, kernel } = planned;
    const { tokenTiles, splits } = tile;
    const rowTiles = outFeatures / GROUP_ROWS;
    const threads = WARPGROUP + FETCH_WARPS * WARP;
    kernel.launch(stream, rowTiles, tokenTiles, splits, threads, tile.sharedBytes, {
      ...{ out, scales: form.factors, zeros: form.zeros ?? null, units: form.units ?? null },
      ...{ bias: bias ?? null, residual: addTo ?? null },
      weight_map: this.#weightMap(weight, form, shape.gated),
      x_map: this.#inputs.map(x.address, tokens, inFeatures, tile.tokens),
      ...{ tokens, outputs: shape.gated ? outFeatures / 2 : outFeatures, inputs: inFeatures },
      ...{ row_tiles: rowTiles, group_size: form.groupSize, groups: form.groups, block_rows: form.blockRows },
    });
    return true;
  }

  #find(weight: QuantisedWeight, form: QuantisedForm, shape: TileShape): Planned | undefined {
    const key = ((shape.tokens * 2 + (shape.gated ? 1 : 0)) * 2 + (shape.floatOut ? 1 : 0)) * 8;
    return this.#plans.get(weight, key + shape.activation + 1, () => {
      const tile = planTile(shape, form, this.options);
      return tile && { tile, kernel: this.#kernels.of(defines(form, tile, shape)) };
    });
  }

  /** Strips in pairs, neighbours or one of each half, in boxes of a stage's columns. */
  #weightMap({ data, shape: [n, k] }: QuantisedWeight, { bits }: QuantisedForm, gated: boolean): HostMap {
    const key = ((n * FEATURES_LIMIT + k) * 2 + (bits === 8 ? 1 : 0)) * 2 + (gated ? 1 : 0);
    return this.#weightMaps.get(data.address, key, () => {
      const stripBytes = (STRIP_ROWS * k * bits) / 8;
      const [other, next] = gated
        ? [(stripBytes * n) / STRIP_ROWS / 2, stripBytes]
        : [stripBytes, 2 * stripBytes];
      return encodeHostMap("uint32", this.options.encodeTensorMap, {
        address: data.address,
        extents: [stripBytes / 4, 2, n / STRIP_ROWS / 2],
        strides: [other, next],
        box: [(STRIP_ROWS * K_TILE * bits) / 8 / 4, 2, GROUP_ROWS / STRIP_ROWS / 2],
        swizzle: 0,
      });
    });
  }
}

function canTake(tokens: number, n: number, k: number, { ordered, units }: QuantisedForm): boolean {
  const most = units === undefined ? MAX_QUANTISED_TOKENS : MAX_SUPERBLOCK_TOKENS;
  return ordered && tokens <= most && n % GROUP_ROWS === 0 && k % K_TILE === 0;
}

/** Columns between changes of the scale in a stage. */
function subOf({ groupSize, groups }: QuantisedForm): number {
  return groups === 1 ? K_TILE : Math.min(groupSize, K_TILE);
}

/** The cut of a product: as many CTAs as keep all multiprocessors at work for the shortest time. */
export function planTile(
  { outFeatures, inFeatures, tokens, gated, floatOut }: TileShape,
  form: QuantisedForm,
  { smCount, sharedBytesPerBlock, sharedBytesPerSm }: WgmmaLinearOptions,
): QuantisedTile | undefined {
  const subs = K_TILE / subOf(form);
  const perRow = form.scales === ScaleKind.rowFloats;
  const widest = perRow ? WIDEST.rows : subs === 1 ? WIDEST.group : WIDEST.groups;
  const tokenTiles = Math.ceil(tokens / widest);
  const tileTokens = TILE_TOKENS.find((each) => each >= tokens / tokenTiles)!;
  const resident = form.scales === ScaleKind.stepsAndMinima ? RESIDENT_WITH_MINIMA : RESIDENT_TOKENS;
  const residency = tileTokens <= resident ? 2 : 1;
  const rowTiles = outFeatures / GROUP_ROWS;
  const kTiles = inFeatures / K_TILE;
  const costOf = (splits: number) =>
    Math.ceil((rowTiles * tokenTiles * splits) / (smCount * residency)) *
    (Math.ceil(kTiles / splits) + TILE_COST);
  const splits = [1, 2, 4, 8]
    .filter((each) => each <= kTiles && each <= tileTokens / 8)
    .reduce((best, each) => (costOf(each) < costOf(best) ? each : best));
  const strips = GROUP_ROWS / STRIP_ROWS;
  const stageBytes = strips * ((STRIP_ROWS * K_TILE * form.bits) / 8 + factorBytes(form, K_TILE, 4));
  const weightBytes = Math.ceil(stageBytes / BOX_ALIGNMENT) * BOX_ALIGNMENT + 16;
  const inputBytes = tileTokens * K_TILE * 2 + 16;
  const most = Math.min(sharedBytesPerBlock, Math.floor(sharedBytesPerSm / residency) - RESERVED_BYTES);
  const ownBlocks = Math.ceil(tileTokens / 8 / splits);
  const exchange = (splits - 1) * ownBlocks * WARPGROUP * 16;
  const staged = (splits > 1 || floatOut ? 1 : ownBlocks * 8) * ((gated ? 1 : 2) * GROUP_ROWS + 16);
  const fixed = exchange + staged + SLACK_BYTES;
  const used = Math.max(2, Math.ceil(kTiles / splits));
  const inputStages = Math.min(used, tileTokens > 64 ? 2 : tileTokens > 32 ? 3 : 4);
  const room = Math.floor((most - fixed - inputStages * inputBytes) / weightBytes);
  const weightStages = Math.min(used, MOST_STAGES, room);
  if (weightStages < 2) return undefined;
  const sharedBytes = fixed + inputStages * inputBytes + weightStages * weightBytes;
  return {
    ...{ tokens: tileTokens, tokenTiles, splits, residency },
    ...{ weightStages, inputStages, sharedBytes },
  };
}

function defines(form: QuantisedForm, tile: QuantisedTile, shape: TileShape): Macros {
  const { gated, activation, floatOut } = shape;
  return {
    ...{ ...formDefines(form), SUB: subOf(form), QUANTISED: 1 },
    ...{ GROUPS: 1, TOKENS: tile.tokens, SPLITS: tile.splits, MIN_CTAS: tile.residency },
    ...{ WEIGHT_STAGES: tile.weightStages, X_STAGES: tile.inputStages, K_BLOCKS },
    ...{ ROW_CLUSTER: 1, TOKEN_CLUSTER: 1, NORM: 0, MAX_K: 0, SQUARERS: 0 },
    ...{ GATED: gated ? 1 : 0, ACTIVATION: activation, OUT_FLOAT: floatOut ? 1 : 0 },
    LINEAR_SHARED_BYTES: tile.sharedBytes,
  };
}
