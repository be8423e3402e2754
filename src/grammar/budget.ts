import { GrammarTooComplexError } from "../base/errors.ts";

/** Steps of a conversion: below a second of work. What a step is worth is weighed where it is spent, in some half a microsecond. */
const STEPS = 1_000_000;

/**
 * A bound on the work of making one grammar. It counts steps, not seconds, so that the same grammar is accepted on a busy machine
 * and on an idle one.
 */
export class Budget {
  #left: number;

  constructor(
    /** The parameter to blame. */
    private readonly param: string,
    steps = STEPS,
  ) {
    this.#left = steps;
  }

  /** @throws GrammarTooComplexError when more has been spent than there was. */
  spend(steps: number, what: string): void {
    this.#left -= steps;
    if (this.#left >= 0) return;
    throw new GrammarTooComplexError(this.param, `${this.param} is too complex: ${what}`);
  }
}
