import type { LinearFusion } from "../backend.ts";
import type { Tensor } from "../tensor.ts";
import type { Weight } from "../weight.ts";
import type { Place } from "./place.ts";
import type { RecordedTask } from "./thread-pool.ts";

/** A product that was computed, of operands that all lie where it was. */
interface Product {
  readonly out: Tensor;
  readonly x: Tensor;
  readonly fusion: LinearFusion;
  readonly place: Place;
  /** Scratch memory lay where the tasks say while the place's count was this. */
  readonly scratchMoves: number;
  readonly tasks: readonly RecordedTask[];
}

/**
 * The last product by each weight, as its tasks. Steps of as many tokens as the one before have the same operands, so that nothing is to
 * be checked or worked out again: a tensor's shape and place never change.
 */
export class LastProducts {
  readonly #products = new WeakMap<Weight, Product>();

  /** The tasks of a product, if it is the last by its weight over again. */
  find(weight: Weight, out: Tensor, x: Tensor, fusion: LinearFusion): readonly RecordedTask[] | undefined {
    const last = this.#products.get(weight);
    if (last === undefined || last.out !== out || last.x !== x) return undefined;
    return isSame(last.fusion, fusion) && last.scratchMoves === last.place.scratchMoves
      ? last.tasks
      : undefined;
  }

  set(weight: Weight, product: Product): void {
    this.#products.set(weight, product);
  }
}

/** The fields that are compared: a type error here says that one is missing. */
type Compared = Record<"norm" | "bias" | "activation" | "addTo", unknown>;
type Complete<Fusion extends { readonly [Field in keyof Compared]?: unknown }> =
  keyof Fusion extends keyof Compared ? Fusion : never;

function isSame(a: Complete<LinearFusion>, b: Complete<LinearFusion>): boolean {
  const isSameNorm = a.norm?.weight === b.norm?.weight && a.norm?.eps === b.norm?.eps;
  return isSameNorm && a.bias === b.bias && a.activation === b.activation && a.addTo === b.addTo;
}
