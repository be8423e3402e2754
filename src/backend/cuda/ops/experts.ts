import type { FloatDType } from "../../../base/dtype.ts";
import { DeviceError, invariant } from "../../../base/errors.ts";
import { checkExperts, checkGateRows } from "../../expert-checks.ts";
import type { ExpertFusion, ExpertSpec, ExpertWeights } from "../../experts.ts";
import type { RmsNormSpec } from "../../linear-fusion.ts";
import type { DeviceBuffer, Tensor } from "../../tensor.ts";
import type { DenseWeight, Weight } from "../../weight.ts";
import type { KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit } from "../kernel-source.ts";
import { Scratch } from "../scratch.ts";
import { ExpertsFew, FEW_PAIRS } from "./experts-few.ts";
import { ExpertsOne } from "./experts-one.ts";
import { type ExpertsForms, type ExpertsProduct, expertsWeight } from "./experts-product.ts";
import { checkChoice, ExpertsRoute, itemBytes, mostItems } from "./experts-route.ts";
import { ExpertsTiles } from "./experts-tiles.ts";
import { ExpertsWgmma } from "./experts-wgmma.ts";
import { accessWidth, KernelVariants } from "./kernel-variants.ts";
import type { NormOps } from "./norm.ts";
import { isQuantised } from "./quantised-form.ts";
import type { QuantisedWeights } from "./quantised-weights.ts";

/**
 * Tokens that are computed at a time: what lies between the kernels is kept for as many. All experts' weights are read for each part of a
 * step, and the more pairs an expert has, the fuller are its tiles.
 */
const MAX_TOKENS = 16_384;
/** Pairs an expert on average, up to which they are few. */
const FEW_AVERAGE = 4;
const THREADS = 128;
const GATE_THREADS = 256;
/** Elements of 16 bytes. */
const PIECE = 8;

const SOURCE = { file: "experts_sum.cu" } as const;
const EXPERTS_SUM = {
  ...SOURCE,
  entry: "experts_sum",
  pointers: ["out", "added", "terms"],
  scalars: ["k", "hidden"],
} as const;
const GATE_ROWS = {
  ...SOURCE,
  entry: "gate_rows",
  pointers: ["y", "x", "gate", "gamma"],
  scalars: ["hidden", "width", "eps"],
} as const;

export interface ExpertOpsOptions extends KernelOptions {
  readonly dtype: FloatDType;
  /** See `CudaBackendOptions.batchInvariant`. */
  readonly batchInvariant?: boolean;
  readonly smCount: number;
  /** Has wgmma. */
  readonly hopper?: boolean;
  /** Device memory that the backend frees. */
  readonly allocate: (byteLength: number) => DeviceBuffer;
}

/** The sizes that kernels of experts are specialised by; the intermediate size is this rank's. */
export interface ExpertSizes {
  readonly count: number;
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly forms: ExpertsForms;
}

/**
 * The ops of a mixture of experts. The router's logits become lists of each expert's tokens on the device, so grids are those of the most
 * that lists can come to, and the host never waits. Then come gate and up with their activation, down, and the sum over a token's
 * experts. One token by itself has kernels of its own, those of experts_one.cu.
 * Where an expert has few tokens, the products are those of experts_few.cu, else those of experts_tiles.cu, or of experts_wgmma.cu.
 */
export class ExpertOps {
  readonly #route: ExpertsRoute;
  readonly #one: ExpertsOne;
  readonly #few: ExpertsFew;
  readonly #tiles: ExpertsTiles;
  /** Undefined on GPUs but Hopper's, and where sums must have the order that they have in tiles of all sizes. */
  readonly #wgmma: ExpertsWgmma | undefined;
  readonly #sum: KernelVariants<typeof EXPERTS_SUM>;
  readonly #gateRows: KernelVariants<typeof GATE_ROWS>;
  readonly #scratch: Readonly<
    Record<"normed" | "ids" | "weights" | "sorted" | "items" | "activated" | "terms", Scratch>
  >;

  constructor(
    library: KernelLibrary,
    private readonly norm: NormOps,
    private readonly weights: QuantisedWeights,
    private readonly options: ExpertOpsOptions,
  ) {
    const { dtype, allocate } = options;
    this.#route = new ExpertsRoute(library, dtype, options);
    this.#one = new ExpertsOne(library, dtype, options);
    this.#few = new ExpertsFew(library, dtype, options);
    this.#tiles = new ExpertsTiles(library, dtype, options);
    if (options.hopper && !options.batchInvariant) this.#wgmma = new ExpertsWgmma(library, dtype, options);
    this.#sum = new KernelVariants(library, EXPERTS_SUM, dtype, options);
    this.#gateRows = new KernelVariants(library, GATE_ROWS, dtype, options);
    const scratch = () => new Scratch(allocate);
    this.#scratch = {
      ...{ normed: scratch(), ids: scratch(), weights: scratch(), sorted: scratch() },
      ...{ items: scratch(), activated: scratch(), terms: scratch() },
    };
  }

  units({ count, hiddenSize, intermediateSize, forms }: ExpertSizes): KernelUnit[] {
    const { dtype, batchInvariant } = this.options;
    return [
      ...(this.#wgmma?.units(forms) ?? []),
      ...this.#tiles.units(forms, this.#wgmma && ExpertsWgmma.takes),
      ...(batchInvariant ? [] : this.#few.units(hiddenSize, intermediateSize, forms)),
      ...(batchInvariant ? [] : this.#one.units(count, hiddenSize, intermediateSize, forms)),
      ...this.#route.units(count),
      this.#sum.unit({ ACCESS: accessWidth(dtype, hiddenSize) }),
    ];
  }

  /** See `Backend.experts`. @throws DeviceError for sizes that the kernels cannot take, and for weights whose columns are permuted */
  experts(
    stream: number,
    out: Tensor,
    x: Tensor,
    logits: Tensor,
    weights: ExpertWeights,
    spec: ExpertSpec,
    fusion: ExpertFusion,
  ): void {
    const { tokens, hidden, intermediate } = checkExperts(
      this.options.dtype,
      out,
      x,
      logits,
      weights,
      spec,
      fusion,
    );
    for (const weight of [weights.gateUp, weights.down])
      invariant(!this.weights.isPrepared(weight), `a ${weight.format} weight of experts was prepared`);
    // Outputs, too, are written in pieces.
    if (hidden % PIECE !== 0 || intermediate % PIECE !== 0)
      throw new DeviceError(
        `experts of ${intermediate} and ${hidden} dimensions; this device takes multiples of ${PIECE}`,
      );
    checkChoice(weights.count, spec.perToken);
    if (tokens === 1 && !this.options.batchInvariant && ExpertsOne.takes(weights, spec)) {
      this.#one.launch(stream, out, x, logits, weights, spec, fusion, {
        activated: this.#scratch.activated.tensor(this.options.dtype, [spec.perToken, intermediate]),
        chosen: this.#scratch.ids.tensor("int32", [spec.perToken]),
        weights: this.#scratch.weights.tensor("float32", [spec.perToken]),
      });
      return;
    }
    for (let start = 0; start < tokens; start += MAX_TOKENS) {
      const part = (tensor: Tensor) => tensor.rows(start, Math.min(start + MAX_TOKENS, tokens));
      const { norm, addTo } = fusion;
      this.#run(stream, part(out), part(x), part(logits), weights, spec, {
        norm,
        addTo: addTo && part(addTo),
      });
    }
  }

  #run(
    stream: number,
    out: Tensor,
    x: Tensor,
    logits: Tensor,
    weights: ExpertWeights,
    spec: ExpertSpec,
    { norm, addTo }: ExpertFusion,
  ): void {
    const { dtype, batchInvariant } = this.options;
    const { count, gateUp, down, gateUpBias, downBias } = weights;
    const [tokens, hidden, intermediate] = [x.dim(0), x.dim(1), down.shape[1]];
    const { perToken } = spec;
    const pairs = tokens * perToken;
    const isFew = !batchInvariant && pairs <= FEW_AVERAGE * count;
    const tile = isFew ? undefined : ExpertsTiles.pairsFor(pairs / count);
    const itemPairs = tile ?? FEW_PAIRS;
    const scratch = this.#scratch;
    // As many as for the smallest items: what captured steps need has been allocated by the largest.
    scratch.items.atLeast(itemBytes(mostItems(pairs, count, FEW_PAIRS)));
    const most = mostItems(pairs, count, itemPairs);
    const lists = {
      weights: scratch.weights.tensor("float32", [pairs]),
      sorted: scratch.sorted.tensor("int32", [pairs]),
      items: scratch.items.tensor("uint8", [itemBytes(most)]),
    };
    const ids = scratch.ids.tensor("int32", [pairs]);
    const input = norm === undefined ? x : scratch.normed.tensor(dtype, x.shape);
    if (ExpertsRoute.isOneLaunch(pairs)) {
      const normed = norm && { spec: norm, x, normed: input };
      this.#route.route(stream, lists, undefined, logits, weights, spec, itemPairs, normed);
    } else {
      if (norm !== undefined) this.norm.rmsNorm(stream, input, x, norm.weight, norm.eps);
      this.#route.route(stream, lists, ids, logits, weights, spec, itemPairs);
    }
    const activated = scratch.activated.tensor(dtype, [pairs, intermediate]);
    const terms = scratch.terms.tensor(dtype, [pairs, hidden]);
    const common = { lists, mostItems: most, perToken };
    const multiply = (product: ExpertsProduct) => {
      if (tile === undefined) this.#few.launch(stream, product);
      else if (this.#wgmma !== undefined && ExpertsWgmma.takes(product.weight, tile))
        this.#wgmma.launch(stream, tile, product);
      else this.#tiles.launch(stream, tile, product);
    };
    const { activation } = spec;
    const up = { out: activated, x: input, weight: expertsWeight(gateUp), bias: gateUpBias };
    multiply({ ...common, ...up, outputs: intermediate, activation });
    const last = { out: terms, x: activated, weight: expertsWeight(down), bias: downBias };
    multiply({ ...common, ...last, outputs: hidden, activation: undefined });
    const access = accessWidth(dtype, hidden, out, addTo);
    const blocks = Math.ceil(hidden / access / THREADS);
    const args = { out, added: addTo ?? null, terms, k: perToken, hidden };
    this.#sum.get(access, { ACCESS: access }).launch(stream, tokens, blocks, 1, THREADS, 0, args);
  }

  /** See `Backend.gateRows`. @throws DeviceError for a gate in 4-bit floats, or whose columns are permuted */
  gateRows(stream: number, y: Tensor, x: Tensor, gate: Weight, norm?: RmsNormSpec): void {
    const { dtype } = this.options;
    const { tokens, hidden, width } = checkGateRows(dtype, y, x, gate, norm);
    if (y.size === 0) return;
    const { data } = this.#elementsOf(stream, gate);
    const access = Math.min(accessWidth(dtype, width, y), accessWidth(dtype, hidden, x, data, norm?.weight));
    const kernel = this.#gateRows.get(access, { ACCESS: access });
    const args = { y, x, gate: data, gamma: norm?.weight ?? null, hidden, width, eps: norm?.eps ?? 0 };
    kernel.launch(stream, tokens, 1, 1, GATE_THREADS, 0, args);
  }

  #elementsOf(stream: number, weight: Weight): DenseWeight {
    if (weight.format === "dense") return weight;
    if (!isQuantised(weight) || (weight.format === "grouped" && weight.permutation !== undefined))
      throw new DeviceError(
        `this device has no kernels for a shared expert's gate in this form (${weight.format}); device "cpu" multiplies by it`,
      );
    return this.weights.dequantise(stream, weight);
  }
}
