import { type Budget, MAX_NESTING } from "./budget.ts";

/**
 * A value of a template, as Python has them: `bigint` is an int, `number` a float, `null` is None, an array a list.
 * Nothing but a namespace can change.
 */
export type Value =
  | null
  | boolean
  | bigint
  | number
  | string
  | readonly Value[]
  | Tuple
  | Dict
  | View
  | Stream
  | Namespace
  | Loop
  | Callable
  | Undefined;

/** The value of a name, key or attribute that does not exist: empty when printed, an error when it is used. */
export class Undefined {
  /**
   * @param message of the error, e.g. `'foo' is undefined`
   * @param isVariable whether it stands for a variable that the template was not given
   */
  constructor(
    readonly message: string,
    readonly isVariable = false,
  ) {}

  /** The error that using it is. */
  error(): Error {
    return this.isVariable ? new MissingVariableError(this.message) : new Error(this.message);
  }
}

/** A template needs a variable that it was not given. */
export class MissingVariableError extends Error {}

export class Tuple {
  constructor(readonly items: readonly Value[]) {}
}

/** A sequence that prints as what it was made by: `range(…)`, or what `dict.keys()` and its kin return. */
export class View {
  constructor(
    readonly type: "range" | "dict_keys" | "dict_values" | "dict_items",
    readonly items: readonly Value[],
  ) {}
}

/** The result of filters such as `map` and `select`: elements that can be taken once, and not be counted. */
export class Stream {
  #items: readonly Value[];

  constructor(items: readonly Value[]) {
    this.#items = items;
  }

  take(): readonly Value[] {
    const items = this.#items;
    this.#items = [];
    return items;
  }

  /** The first element, or undefined at the end. */
  next(): Value | undefined {
    const first = this.#items[0];
    this.#items = this.#items.slice(1);
    return first;
  }
}

/** The only value that `set` changes, by `ns.name`. */
export class Namespace {
  readonly fields = new Map<string, Value>();
}

/** `loop` inside a loop's body. */
export class Loop {
  constructor(
    readonly items: readonly Value[],
    readonly index: number,
    /** The value that `loop.changed` was last asked about in this loop. */
    readonly state: { last: Value | undefined },
  ) {}

  get(name: string): Value | undefined {
    const { items, index } = this;
    switch (name) {
      case "index":
        return BigInt(index + 1);
      case "index0":
        return BigInt(index);
      case "revindex":
        return BigInt(items.length - index);
      case "revindex0":
        return BigInt(items.length - index - 1);
      case "first":
        return index === 0;
      case "last":
        return index === items.length - 1;
      case "length":
        return BigInt(items.length);
      case "previtem":
        return index > 0 ? items[index - 1] : new Undefined("there is no previous item");
      case "nextitem":
        return index < items.length - 1 ? items[index + 1] : new Undefined("there is no next item");
      case "depth":
        return 1n;
      case "depth0":
        return 0n;
    }
    return undefined;
  }
}

/** Arguments of a call, evaluated. */
export interface Arguments {
  readonly positional: readonly Value[];
  readonly keywords: ReadonlyMap<string, Value>;
}

/** A macro, a method, or a function that the template is given. */
export class Callable {
  constructor(
    readonly name: string,
    readonly call: (args: Arguments) => Value,
  ) {}
}

/** Keys are None, booleans, numbers and texts; equal ones are the same key, so that `1`, `1.0` and `True` are. */
export class Dict {
  readonly #entries = new Map<unknown, readonly [Value, Value]>();

  constructor(entries: Iterable<readonly [Value, Value]> = []) {
    for (const [key, value] of entries) {
      const same = hashable(key);
      this.#entries.set(same, [this.#entries.get(same)?.[0] ?? key, value]);
    }
  }

  get size(): number {
    return this.#entries.size;
  }

  get(key: Value): Value | undefined {
    return this.#entries.get(hashable(key))?.[1];
  }

  has(key: Value): boolean {
    return this.#entries.has(hashable(key));
  }

  keys(): Value[] {
    return Array.from(this.#entries.values(), ([key]) => key);
  }

  values(): Value[] {
    return Array.from(this.#entries.values(), ([, value]) => value);
  }

  entries(): (readonly [Value, Value])[] {
    return [...this.#entries.values()];
  }
}

/** The one value that equal keys share. @throws Error for a value that cannot be a key */
export function hashable(key: Value): unknown {
  if (typeof key === "boolean") return BigInt(key);
  if (typeof key === "number") return Number.isInteger(key) ? BigInt(key) : key;
  if (key === null || typeof key === "bigint" || typeof key === "string") return key;
  if (key instanceof Undefined) throw key.error();
  throw new Error(`unhashable type: '${typeName(key)}'`);
}

/** Python's name of a value's type. */
export function typeName(value: Value): string {
  if (value === null) return "NoneType";
  if (typeof value === "boolean") return "bool";
  if (typeof value === "bigint") return "int";
  if (typeof value === "number") return "float";
  if (typeof value === "string") return "str";
  if (Array.isArray(value)) return "list";
  if (value instanceof Tuple) return "tuple";
  if (value instanceof Dict) return "dict";
  if (value instanceof View) return value.type;
  if (value instanceof Stream) return "generator";
  if (value instanceof Namespace) return "Namespace";
  if (value instanceof Loop) return "LoopContext";
  return value instanceof Undefined ? "Undefined" : "function";
}

export function isNumeric(value: Value): value is boolean | bigint | number {
  return typeof value === "boolean" || typeof value === "bigint" || typeof value === "number";
}

export function isTrue(value: Value): boolean {
  if (value === null || value instanceof Undefined) return false;
  if (typeof value !== "object") return Boolean(value);
  const size = sizeOf(value);
  return size === undefined || size > 0;
}

/** A list's, tuple's, dictionary's or view's number of elements; undefined for all else. */
export function sizeOf(value: Value): number | undefined {
  if (Array.isArray(value)) return value.length;
  if (value instanceof Tuple || value instanceof View) return value.items.length;
  return value instanceof Dict ? value.size : undefined;
}

/** The elements of a list, tuple or view; undefined for all else. */
export function sequence(value: Value): readonly Value[] | undefined {
  if (Array.isArray(value)) return value;
  return value instanceof Tuple || value instanceof View ? value.items : undefined;
}

/** The elements that a loop over `value` meets: characters of a text, keys of a dictionary, nothing in what is undefined. */
export function iterate(value: Value, budget: Budget): readonly Value[] {
  if (typeof value === "string") {
    budget.step(value.length);
    return Array.from(value);
  }
  if (value instanceof Undefined) return [];
  const items =
    value instanceof Stream ? value.take() : value instanceof Dict ? value.keys() : sequence(value);
  if (items === undefined) throw new Error(`'${typeName(value)}' object is not iterable`);
  budget.step(items.length);
  return items;
}

/** The integer that an argument must be; a truth value is one. */
export function integer(value: Value | undefined, what: string): number {
  if (typeof value === "boolean") return Number(value);
  if (typeof value === "bigint" && BigInt.asIntN(53, value) === value) return Number(value);
  throw new Error(`${what} must be an integer`);
}

/** The text that an argument must be. */
export function text(value: Value | undefined, what: string): string {
  if (typeof value === "string") return value;
  throw new Error(`${what} must be a string`);
}

/** The argument at `index`, or of that name; undefined if it is not given. */
export function argument(args: Arguments, index: number, name: string): Value | undefined {
  return index < args.positional.length ? args.positional[index] : args.keywords.get(name);
}

/** `value` if there is one, else what is undefined. */
export function orUndefined(value: Value | undefined, message: string): Value {
  return value === undefined ? new Undefined(message) : value;
}

/** The size of inputs, for the budget. */
export class InputSize {
  elements = 0;
  characters = 0;
}

/**
 * A value from outside as a template sees it. An integral number is an int; a boxed one (`new Number(1)`) is a float,
 * and a bigint an int too large for a number, as `parseExactJson` spells them. Functions and symbols become undefined.
 */
export function fromOutside(input: unknown, size: InputSize, nesting = 0): Value {
  size.elements++;
  if (nesting > MAX_NESTING) throw new Error(`a value nests more than ${MAX_NESTING} deep`);
  const inner = (value: unknown) => fromOutside(value, size, nesting + 1);
  if (input === null || typeof input === "boolean" || typeof input === "bigint") return input;
  if (typeof input === "number") return Number.isSafeInteger(input) ? BigInt(input) : input;
  if (input instanceof Number) return input.valueOf();
  if (typeof input === "string") {
    size.characters += input.length;
    return input;
  }
  if (input instanceof Callable) return input;
  if (Array.isArray(input)) return input.map(inner);
  if (typeof input !== "object") return new Undefined("an argument is undefined");
  const entries = input instanceof Map ? [...input] : Object.entries(input);
  return new Dict(
    entries.filter(([, value]) => value !== undefined).map(([key, value]) => [inner(key), inner(value)]),
  );
}
