import type { FloatDType } from "../../../base/dtype.ts";
import type { LinearFusion } from "../../backend.ts";
import type { DeviceBuffer, Tensor } from "../../tensor.ts";
import type { Fp8Weight } from "../../weight.ts";
import type { Kernel } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit } from "../kernel-source.ts";
import { ACTIVATION_CODES, ACTIVATION_CONSTANTS } from "./activation.ts";
import { Float8Inputs } from "./float8-inputs.ts";
import { float8Columns, float8Tile, float8Tiles } from "./float8-tiles.ts";
import { encodeHostMap, type HostMap, HostMaps, InputMaps } from "./host-maps.ts";
import { type ArgumentsOf, KernelVariants, VECTOR_BYTES } from "./kernel-variants.ts";
import {
  BLOCK_BYTES,
  type QuantisedForm,
  ScaleKind,
  STRIP_BLOCK_BYTES,
  STRIP_ROWS,
} from "./quantised-form.ts";
import type { TileShape } from "./quantised-wgmma.ts";
import { WeightPlans } from "./weight-plans.ts";
import {
  GROUP_ROWS,
  type Stages,
  stagesOf,
  threadsOf,
  tileDefines,
  type WgmmaLinearOptions,
  type WgmmaShape,
  type WgmmaTile,
} from "./wgmma-linear.ts";

/** Columns of a stage: at least one swizzled row of x. */
const K_BYTES = 128;
/** The copy engine is told of codes as pairs. */
const PAIR = 2;
/** More features than a matrix has, and more pairs of strips than a box. */
const FEATURES_LIMIT = 2 ** 22;
const PAIRS_LIMIT = 16;

const LINEAR_FLOAT8 = {
  file: "linear_float8.cu",
  constants: ACTIVATION_CONSTANTS,
  entry: "linear_float8",
  values: ["weight_map", "x_map"],
  pointers: ["out", "factors", "x_factors", "bias", "residual"],
  scalars: ["tokens", "outputs", "row_tiles", "k_tiles"],
} as const;

export interface Float8LinearOptions extends WgmmaLinearOptions {
  /** Device memory that the backend frees. */
  readonly allocate: (byteLength: number) => DeviceBuffer;
}

interface Planned {
  readonly tile: WgmmaTile;
  readonly shape: WgmmaShape;
  readonly stages: Stages;
  readonly kernel: Kernel<ArgumentsOf<typeof LINEAR_FLOAT8>>;
}

/** Products of activations made 8-bit floats by such weights, on Hopper: `linear_float8.cu`. */
export class Float8Linear {
  readonly #kernels: KernelVariants<typeof LINEAR_FLOAT8>;
  readonly #plans = new WeightPlans<Fp8Weight, Planned>();
  readonly #tokens: Float8Inputs;
  readonly #weightMaps = new HostMaps();
  readonly #inputMaps: InputMaps;

  constructor(
    library: KernelLibrary,
    private readonly dtype: FloatDType,
    private readonly options: Float8LinearOptions,
  ) {
    this.#kernels = new KernelVariants(library, LINEAR_FLOAT8, dtype, options);
    this.#tokens = new Float8Inputs(library, dtype, options);
    this.#inputMaps = new InputMaps(dtype, options.encodeTensorMap);
  }

  /** Whether the kernel can multiply by a weight. */
  takes({ shape: [n, k] }: Fp8Weight, { ordered, scales }: QuantisedForm): boolean {
    const whole = n % GROUP_ROWS === 0 && k % K_BYTES === 0 && k <= Float8Inputs.MAX_WIDTH;
    return ordered && whole && scales === ScaleKind.rowFloats;
  }

  /** What products of so many tokens need compiled; of more than a tile's, of any number. */
  units(shape: TileShape): KernelUnit[] {
    const multiplied = pairsOf(shape);
    const kernels = float8Tiles(shape, this.options.smCount).flatMap((tile) => {
      const stages = this.#stages(tile, multiplied);
      return stages === undefined ? [] : [this.#kernels.unit(tileDefines(tile, multiplied, stages))];
    });
    return [...kernels, ...this.#tokens.units(shape.inFeatures)];
  }

  /** Loads the same, which capturing forbids. */
  load(weight: Fp8Weight, shape: TileShape): void {
    for (const tile of float8Tiles(shape, this.options.smCount)) this.#plan(tile, shape);
    this.#find(weight, shape);
    this.#tokens.load(shape.inFeatures);
  }

  /** Enqueues `Backend.linear`, whose checks have passed, by a weight that it `takes`; false where operands are not aligned. */
  launch(
    stream: number,
    out: Tensor,
    x: Tensor,
    weight: Fp8Weight,
    { norm, bias, activation, addTo }: LinearFusion,
  ): boolean {
    for (const tensor of [x, out, addTo, norm?.weight])
      if (tensor !== undefined && tensor.address % VECTOR_BYTES !== 0) return false;
    const [outFeatures, inFeatures] = weight.shape;
    const [tokens, gated] = [x.dim(0), activation?.gated ?? false];
    const planned = this.#find(weight, {
      ...{ outFeatures, inFeatures, tokens, gated, floatOut: out.dtype === "float32" },
      activation: activation === undefined ? -1 : ACTIVATION_CODES[activation.kind],
    });
    if (planned === undefined) return false;
    const { tile, stages, kernel } = planned;
    const { codes, factors } = this.#tokens.quantise(stream, x, norm);
    const rowTiles = outFeatures / (GROUP_ROWS * tile.groups);
    const tokenTiles = Math.ceil(tokens / tile.tokens / tile.tokenCluster) * tile.tokenCluster;
    const columns = float8Columns(tile, rowTiles, tokenTiles, this.options.smCount);
    kernel.launch(
      stream,
      columns,
      tokenTiles,
      tile.splits,
      threadsOf(tile, planned.shape),
      stages.sharedBytes,
      {
        weight_map: this.#weightMap(weight, gated, (GROUP_ROWS * tile.groups) / tile.tokenCluster),
        x_map: this.#inputMaps.map(codes.address, tokens, inFeatures / PAIR, tile.tokens / tile.rowCluster),
        ...{ out, factors: weight.scales, x_factors: factors, bias: bias ?? null, residual: addTo ?? null },
        ...{ tokens, outputs: gated ? outFeatures / 2 : outFeatures },
        ...{ row_tiles: rowTiles, k_tiles: inFeatures / (K_BYTES * tile.kBlocks) },
      },
    );
    return true;
  }

  #find(weight: Fp8Weight, shape: TileShape): Planned | undefined {
    const flags = (shape.gated ? 1 : 0) + (shape.floatOut ? 2 : 0) + (shape.activation + 1) * 4;
    const key = shape.tokens * 64 + flags;
    return this.#plans.get(weight, key, () => this.#plan(float8Tile(shape, this.options.smCount), shape));
  }

  #plan(tile: WgmmaTile, shape: TileShape): Planned | undefined {
    const multiplied = pairsOf(shape);
    const stages = this.#stages(tile, multiplied);
    return stages && { tile, shape: multiplied, stages, kernel: this.#kernel(tile, multiplied, stages) };
  }

  #stages(tile: WgmmaTile, multiplied: WgmmaShape): Stages | undefined {
    return stagesOf(tile, multiplied, this.options, tile.tokens * Float32Array.BYTES_PER_ELEMENT);
  }

  #kernel(tile: WgmmaTile, multiplied: WgmmaShape, stages: Stages) {
    return this.#kernels.of(tileDefines(tile, multiplied, stages));
  }

  /** Pairs of strips, neighbours or one of each half, in boxes of one block of columns. */
  #weightMap({ data, shape: [n, k] }: Fp8Weight, gated: boolean, boxRows: number): HostMap {
    const pairRows = 2 * STRIP_ROWS;
    const key = ((n * FEATURES_LIMIT + k) * PAIRS_LIMIT + boxRows / pairRows) * 2 + (gated ? 1 : 0);
    return this.#weightMaps.get(data.address, key, () => {
      const stripBytes = STRIP_ROWS * k;
      const [other, next] = gated ? [(n / 2) * k, stripBytes] : [stripBytes, 2 * stripBytes];
      return encodeHostMap(this.dtype, this.options.encodeTensorMap, {
        address: data.address,
        extents: [BLOCK_BYTES / PAIR, STRIP_ROWS, 2, k / BLOCK_BYTES, n / pairRows],
        strides: [BLOCK_BYTES, other, STRIP_BLOCK_BYTES, next],
        box: [BLOCK_BYTES / PAIR, STRIP_ROWS, 2, 1, boxRows / pairRows],
        swizzle: BLOCK_BYTES,
      });
    });
  }
}

/** The shape that has the bytes of a product of 8 bits in elements of 16. */
function pairsOf({ inFeatures, outFeatures, gated, activation, floatOut }: TileShape): WgmmaShape {
  return { outFeatures, inFeatures: inFeatures / PAIR, norm: false, gated, activation, floatOut };
}
