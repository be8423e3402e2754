/** A template's allowance whatever it is given, and in addition for each element and character of its inputs. */
const BASE_STEPS = 2 ** 20;
const STEPS_PER_ELEMENT = 256;
const STEPS_PER_CHARACTER = 1;
const BASE_LENGTH = 2 ** 20;
const LENGTH_PER_CHARACTER = 4;

/** Characters that cost one step to read or write, as list elements and syntax nodes do. */
const CHARACTERS_PER_STEP = 64;
/** Integers longer than this cost more to compute with than a step. */
const MAX_INTEGER = 1n << 256n;
/** The depth to which values and syntax may nest. */
export const MAX_NESTING = 128;
const MAX_DEPTH = 512;

/** A rendering took more than its template may. */
export class BudgetError extends Error {}

/**
 * The allowance of one rendering of an untrusted template: a count of steps, so that the same rendering ends the same way
 * on every machine. A step is a syntax node run, an element touched, or 64 characters read or written; a million take
 * about a tenth of a second. Everything that costs more than its syntax is paid for before it is done, which bounds
 * memory too.
 */
export class Budget {
  readonly #limit: number;
  readonly #maxLength: number;
  #steps = 0;
  #depth = 0;

  /** @param elements values in the inputs, nested ones included @param characters of the texts in the inputs */
  constructor(elements: number, characters: number) {
    this.#limit = BASE_STEPS + STEPS_PER_ELEMENT * elements + STEPS_PER_CHARACTER * characters;
    this.#maxLength = BASE_LENGTH + LENGTH_PER_CHARACTER * characters;
  }

  /** @throws BudgetError once the steps are used up */
  step(count = 1): void {
    this.#steps += count;
    if (!(this.#steps <= this.#limit))
      throw new BudgetError(`the template takes more than ${this.#limit} steps`);
  }

  /** Pays for a text of `length` characters. @throws BudgetError if it is too long, whatever has been used */
  text(length: number): void {
    if (!(length <= this.#maxLength)) throw new BudgetError("the template makes a text that is too long");
    this.step(length / CHARACTERS_PER_STEP);
  }

  /** @throws BudgetError for an integer of more than 256 bits */
  integer(value: bigint): bigint {
    if (value > MAX_INTEGER || value < -MAX_INTEGER)
      throw new BudgetError("an integer has more than 256 bits");
    return value;
  }

  /** Begins a syntax node. @throws BudgetError where syntax nests more than 512 deep at run time */
  enter(): void {
    this.step();
    if (++this.#depth > MAX_DEPTH) throw new BudgetError(`the template nests more than ${MAX_DEPTH} deep`);
  }

  /** Ends it. A rendering that fails need not: it is over. */
  leave(): void {
    this.#depth--;
  }
}
