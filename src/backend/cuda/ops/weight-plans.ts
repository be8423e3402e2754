/**
 * How products by weights are computed, by a number that tells a product's shape apart. That a kernel cannot take one is remembered,
 * too. Weights that are gone take their plans with them.
 */
export class WeightPlans<W extends WeakKey, P> {
  readonly #plans = new WeakMap<W, Map<number, P | undefined>>();

  get(weight: W, shape: number, plan: () => P | undefined): P | undefined {
    let plans = this.#plans.get(weight);
    if (plans === undefined) {
      plans = new Map();
      this.#plans.set(weight, plans);
    }
    if (plans.has(shape)) return plans.get(shape);
    const planned = plan();
    plans.set(shape, planned);
    return planned;
  }
}
