import type { FloatDType } from "../../../base/dtype.ts";
import { DeviceError } from "../../../base/errors.ts";
import type { RmsNormSpec } from "../../backend.ts";
import type { ExpertSpec, ExpertWeights } from "../../experts.ts";
import type { Tensor } from "../../tensor.ts";
import type { KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit } from "../kernel-source.ts";
import { KernelVariants, WARP } from "./kernel-variants.ts";

const ROUTE_THREADS = 512;
/** The most that one launch routes. */
const MAX_ROUTE_PAIRS = 256;
const MAX_EXPERTS = 1024;
const MAX_PER_TOKEN = WARP;
/** Bytes of an item; expert_items.cuh. */
const ITEM_BYTES = 16;

/** Constants of expert_choice.cuh. */
export const CHOICE_CONSTANTS = { MAX_EXPERTS, MAX_PER_TOKEN } as const;

const SOURCE = {
  file: "experts_route.cu",
  constants: { ROUTE_THREADS, MAX_ROUTE_PAIRS, ...CHOICE_CONSTANTS },
} as const;
const CHOOSE = {
  ...SOURCE,
  entry: "experts_choose",
  pointers: ["ids", "weights", "logits", "bias", "scales"],
  scalars: ["tokens", "k", "softmax_over_all"],
} as const;
const LIST = {
  ...SOURCE,
  entry: "experts_list",
  pointers: ["sorted", "items", "ids"],
  scalars: ["pairs", "item_pairs"],
} as const;
const ROUTE = {
  ...SOURCE,
  entry: "experts_route",
  pointers: ["weights", "sorted", "items", "normed", "logits", "bias", "scales", "x", "gamma"],
  scalars: ["tokens", "k", "softmax_over_all", "item_pairs", "hidden", "eps"],
} as const;

/** Pairs of a token and one of its experts, sorted by expert and cut into items; what each tensor holds is in experts_route.cu. */
export interface ExpertLists {
  /** float32 [pairs], int32 [pairs]. */
  readonly weights: Tensor;
  readonly sorted: Tensor;
  /** uint8, of `itemBytes`. */
  readonly items: Tensor;
}

/** The most items that lists of so many pairs can be cut into. */
export function mostItems(pairs: number, experts: number, itemPairs: number): number {
  const active = Math.min(pairs, experts);
  return Math.floor((pairs + active * (itemPairs - 1)) / itemPairs);
}

/** Memory of so many items and their number. */
export function itemBytes(most: number): number {
  return (1 + most) * ITEM_BYTES;
}

/** @throws DeviceError for more experts than the kernels take */
export function checkChoice(experts: number, k: number): void {
  if (experts > MAX_EXPERTS || k > MAX_PER_TOKEN)
    throw new DeviceError(
      `${k} of ${experts} experts a token; this device takes up to ${MAX_PER_TOKEN} of ${MAX_EXPERTS}`,
    );
}

/** From the router's logits to lists of each expert's tokens. */
export class ExpertsRoute {
  readonly #choose: KernelVariants<typeof CHOOSE>;
  readonly #list: KernelVariants<typeof LIST>;
  readonly #route: KernelVariants<typeof ROUTE>;

  constructor(library: KernelLibrary, dtype: FloatDType, options: KernelOptions) {
    this.#choose = new KernelVariants(library, CHOOSE, dtype, options);
    this.#list = new KernelVariants(library, LIST, dtype, options);
    this.#route = new KernelVariants(library, ROUTE, dtype, options);
  }

  units(experts: number): KernelUnit[] {
    return [this.#choose.unit({ EXPERTS: experts })];
  }

  /** True if `route` does everything in one launch. */
  static isOneLaunch(pairs: number): boolean {
    return pairs <= MAX_ROUTE_PAIRS;
  }

  /**
   * Makes the lists, of items of `itemPairs` pairs.
   * @param ids int32 [pairs], scratch; unused in one launch
   * @param norm of x, into `normed`, in one launch alone
   */
  route(
    stream: number,
    { weights, sorted, items }: ExpertLists,
    ids: Tensor | undefined,
    logits: Tensor,
    { routerBias, expertScales }: Pick<ExpertWeights, "routerBias" | "expertScales">,
    { perToken: k, softmaxOver }: ExpertSpec,
    itemPairs: number,
    norm?: { readonly spec: RmsNormSpec; readonly x: Tensor; readonly normed: Tensor },
  ): void {
    const [tokens, experts] = [logits.dim(0), logits.dim(1)];
    const softmaxOverAll = softmaxOver === "all" ? 1 : 0;
    const defines = { EXPERTS: experts };
    const routing = { logits, bias: routerBias ?? null, scales: expertScales ?? null };
    const pairs = tokens * k;
    if (ids === undefined) {
      const args = {
        ...{
          weights,
          sorted,
          items,
          normed: norm?.normed ?? null,
          ...routing,
          x: norm?.x ?? null,
        },
        ...{ gamma: norm?.spec.weight ?? null, tokens, k, softmax_over_all: softmaxOverAll },
        ...{ item_pairs: itemPairs, hidden: norm?.x.dim(1) ?? 0, eps: norm?.spec.eps ?? 0 },
      };
      this.#route.get(experts, defines).launch(stream, experts, 1, 1, ROUTE_THREADS, 0, args);
      return;
    }
    const blocks = Math.ceil(tokens / (ROUTE_THREADS / WARP));
    const chosen = { ids, weights, ...routing, tokens, k, softmax_over_all: softmaxOverAll };
    this.#choose.get(experts, defines).launch(stream, blocks, 1, 1, ROUTE_THREADS, 0, chosen);
    const listed = { sorted, items, ids, pairs, item_pairs: itemPairs };
    this.#list.get(experts, defines).launch(stream, experts, 1, 1, ROUTE_THREADS, 0, listed);
  }
}
