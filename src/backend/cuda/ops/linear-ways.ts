import { dtypeSize, type FloatDType } from "../../../base/dtype.ts";
import type { LinearFusion, ModelShape } from "../../backend.ts";
import { byteLengthOf, type DeviceBuffer, Tensor } from "../../tensor.ts";
import type { DenseWeight } from "../../weight.ts";
import { attempt, type ColdTimer, chosen } from "../cold-timer.ts";
import type { KernelUnit } from "../kernel-source.ts";
import type { TuningCache } from "../tuning-cache.ts";
import { ACTIVATION_CODES } from "./activation.ts";
import { isDense, productsOf } from "./model-products.ts";
import { aligned, WgmmaLinear, type WgmmaPlan, type WgmmaShape } from "./wgmma-linear.ts";
import { invariantTile, MAX_WGMMA_TOKENS, type WgmmaWay, wayName, wgmmaWays } from "./wgmma-tiles.ts";

/** The choice of cuBLASLt with what surrounds it, among ways. */
const COMPOSED = "composed";
/** More features than a matrix has, and more than the flags of a product come to. */
const FEATURES_LIMIT = 2 ** 22;
const FLAGS_LIMIT = 256;
/** Token counts whose kernels are compiled ahead, apart by as much. */
const PREPARED_STEP = 16;

/** A way to run a product, with its kernel. */
export interface LinearWay extends WgmmaWay {
  readonly plan: WgmmaPlan;
}

export interface LinearWaysOptions {
  readonly dtype: FloatDType;
  readonly smCount: number;
  /** See `CudaBackendOptions.batchInvariant`. */
  readonly batchInvariant: boolean;
  readonly timer: ColdTimer;
  readonly cache: TuningCache;
  /** Device memory, filled with zeros. */
  readonly allocateZeroed: (byteLength: number) => DeviceBuffer;
}

/** Enqueues a product: by a way, or without one by cuBLASLt with what surrounds it. */
export type RunLinear = (
  way: LinearWay | undefined,
  out: Tensor,
  x: Tensor,
  weight: DenseWeight,
  fusion: LinearFusion,
) => void;

/** A product as the model asks for it, whatever the number of tokens. */
interface Product {
  readonly name: string;
  readonly shape: WgmmaShape;
  /** Its weights by address, each with what surrounds it. */
  readonly uses: Map<number, { readonly weight: DenseWeight; readonly fusion: LinearFusion }>;
  /** Ways of token counts; undefined is cuBLASLt. */
  readonly ways: Map<number, LinearWay | undefined>;
}

/** Chooses among cuBLASLt and the ways of `linear_wgmma.cu` for each product and number of tokens. */
export class LinearWays {
  readonly #products = new Map<number, Product>();
  /** Token counts that have been tuned for, ascending. */
  #tuned: readonly number[] = [];

  constructor(
    private readonly wgmma: WgmmaLinear,
    private readonly options: LinearWaysOptions,
  ) {}

  /** Units for the four products of a layer: those that an earlier start has chosen, or else all ways. */
  units(shape: ModelShape): KernelUnit[] {
    return productsOf(shape)
      .filter((product) => !product.floatOut && isDense(product, shape))
      .flatMap((product) => this.#unitsOf(product));
  }

  /** The way of a product whose checks have passed; undefined for cuBLASLt with what surrounds it. */
  find(out: Tensor, x: Tensor, weight: DenseWeight, fusion: LinearFusion): LinearWay | undefined {
    const key = productKey(out, weight, fusion);
    let product = this.#products.get(key);
    if (product === undefined) {
      const shape = WgmmaLinear.shapeOf(out, weight, fusion);
      product = { name: productName(shape, fusion), shape, uses: new Map(), ways: new Map() };
      this.#products.set(key, product);
    }
    if (!product.uses.has(weight.data.address)) product.uses.set(weight.data.address, { weight, fusion });
    if (!aligned(out, x, weight, fusion)) return undefined;
    const tokens = this.options.batchInvariant ? 0 : x.dim(0);
    if (tokens > MAX_WGMMA_TOKENS) return undefined;
    if (product.ways.has(tokens)) return product.ways.get(tokens);
    const way = this.#choose(product, tokens);
    product.ways.set(tokens, way);
    return way;
  }

  /** Calls `visit` with the address of each weight that a product was seen with so far, and what surrounds it. */
  visit(visit: (shape: WgmmaShape, weight: number, fusion: LinearFusion) => void): void {
    for (const { shape, uses } of this.#products.values()) {
      for (const [weight, { fusion }] of uses) visit(shape, weight, fusion);
    }
  }

  /**
   * Times the ways of every product seen so far at these token counts, where the choice is not known yet, against cuBLASLt,
   * whose algorithms must have been tuned. What cannot be timed is left to the first way.
   */
  tune(tokenCounts: readonly number[], run: RunLinear): void {
    if (this.options.batchInvariant) return;
    const counts = tokenCounts.filter((tokens) => tokens <= MAX_WGMMA_TOKENS);
    for (const product of this.#products.values()) {
      for (const tokens of counts) {
        if (this.#stored(product, tokens) === undefined) attempt(() => this.#time(product, tokens, run));
      }
      product.ways.clear();
    }
    this.#tuned = [...new Set([...this.#tuned, ...counts])].sort((a, b) => a - b);
    this.options.cache.save();
    // Kernels are loaded now: graphs are captured next, when nothing may be.
    for (const product of this.#products.values()) {
      for (const tokens of this.#tuned) product.ways.set(tokens, this.#choose(product, tokens));
    }
  }

  #choose(product: Product, tokens: number): LinearWay | undefined {
    const { shape } = product;
    const { smCount, batchInvariant } = this.options;
    if (batchInvariant)
      return this.#planned(shape, { tile: invariantTile(shape, smCount), normKernel: false });
    // The LM head: reading its weight takes cuBLASLt no longer, and its tiles would be compiled for every batch size.
    if (shape.floatOut) return undefined;
    const tuned = this.#tuned.find((count) => count >= tokens);
    const stored = tuned === undefined ? undefined : this.#stored(product, tuned);
    if (stored === COMPOSED) return undefined;
    const ways = wgmmaWays(shape, stored === undefined ? tokens : tuned!, smCount);
    if (stored !== undefined) return this.#planned(shape, ways.find((way) => wayName(way) === stored)!);
    for (const way of ways) {
      const planned = this.#planned(shape, way);
      if (planned !== undefined) return planned;
    }
    return undefined;
  }

  #planned(shape: WgmmaShape, way: WgmmaWay): LinearWay | undefined {
    const plan = this.wgmma.plan(way.tile, multiplied(shape, way));
    return plan && { ...way, plan };
  }

  /** The choice that is kept on disk, unless it is none of the ways of today. */
  #stored({ name, shape }: Pick<Product, "name" | "shape">, tokens: number): string | undefined {
    const stored = this.options.cache.get<string>(`${name}/${tokens}`);
    if (stored === undefined || stored === COMPOSED) return stored;
    const ways = wgmmaWays(shape, tokens, this.options.smCount);
    return ways.some((way) => wayName(way) === stored) ? stored : undefined;
  }

  #time(product: Product, tokens: number, run: RunLinear): void {
    const { dtype, smCount, timer, cache, allocateZeroed } = this.options;
    const { shape } = product;
    if (shape.floatOut) return;
    const ways = wgmmaWays(shape, tokens, smCount).flatMap((way) => this.#planned(shape, way) ?? []);
    if (ways.length === 0) return;
    const { inFeatures, outFeatures, gated } = shape;
    const buffers: DeviceBuffer[] = [];
    const tensor = (...extents: number[]) => {
      const buffer = allocateZeroed(byteLengthOf(dtype, extents));
      buffers.push(buffer);
      return new Tensor(buffer, dtype, extents);
    };
    try {
      // Products of zeros: where they are added to `out`, it stays zero however often they run.
      const x = tensor(tokens, inFeatures);
      const out = tensor(tokens, gated ? outFeatures / 2 : outFeatures);
      const uses = timer.cold([...product.uses.values()], inFeatures * outFeatures * dtypeSize(dtype));
      const enqueue = (way: LinearWay | undefined) => {
        for (const { weight, fusion } of uses)
          run(way, out, x, weight, fusion.addTo === undefined ? fusion : { ...fusion, addTo: out });
      };
      // Before the first capture: what this needs is allocated.
      for (const way of [...ways, undefined]) enqueue(way);
      const timed = [...ways, undefined].map((way) => ({ way, time: timer.time(() => enqueue(way)) }));
      const choice = chosen(timed);
      if (choice === undefined) return;
      const { way } = choice;
      cache.set(`${product.name}/${tokens}`, way === undefined ? COMPOSED : wayName(way));
    } finally {
      for (const buffer of buffers) buffer.dispose();
    }
  }

  #unitsOf(shape: WgmmaShape): KernelUnit[] {
    const { batchInvariant, smCount } = this.options;
    if (batchInvariant) return this.wgmma.units(invariantTile(shape, smCount), shape);
    const counts = Array.from(
      { length: MAX_WGMMA_TOKENS / PREPARED_STEP },
      (_, i) => (i + 1) * PREPARED_STEP,
    );
    return counts.flatMap((tokens) => {
      const names = FUSIONS.map((fusion) =>
        this.#stored({ name: productName(shape, fusion), shape }, tokens),
      );
      const known = names.some((name) => name !== undefined);
      return wgmmaWays(shape, tokens, smCount)
        .filter((way) => !known || names.includes(wayName(way)))
        .flatMap((way) => this.wgmma.units(way.tile, multiplied(shape, way)));
    });
  }
}

/** The shape that the kernel multiplies: without the norm, where that has a kernel of its own. */
function multiplied(shape: WgmmaShape, { normKernel }: WgmmaWay): WgmmaShape {
  return normKernel ? { ...shape, norm: false } : shape;
}

/** The surroundings of a product besides its shape, in all combinations. */
const FUSIONS: readonly { readonly bias?: unknown; readonly addTo?: unknown }[] = [
  {},
  { bias: true },
  { addTo: true },
  { bias: true, addTo: true },
];

/** Tells products apart, as `productName` does; it is asked at every launch, where a string would cost more than the rest. */
function productKey(
  out: Tensor,
  weight: DenseWeight,
  { norm, bias, activation, addTo }: LinearFusion,
): number {
  const added = (bias === undefined ? 0 : 1) + (addTo === undefined ? 0 : 2) + (norm === undefined ? 0 : 4);
  const activated =
    activation === undefined ? 0 : 2 * (ACTIVATION_CODES[activation.kind] + 1) + (activation.gated ? 1 : 0);
  const flags = added + (out.dtype === "float32" ? 8 : 0) + activated * 16;
  return (weight.shape[0] * FEATURES_LIMIT + weight.shape[1]) * FLAGS_LIMIT + flags;
}

function productName(
  shape: WgmmaShape,
  fusion: { readonly bias?: unknown; readonly addTo?: unknown },
): string {
  const { outFeatures, inFeatures, norm, gated, activation, floatOut } = shape;
  const flags = [norm, gated, floatOut, fusion.bias !== undefined, fusion.addTo !== undefined];
  return `linear/${outFeatures}/${inFeatures}/${activation}/${flags.map(Number).join("")}`;
}
