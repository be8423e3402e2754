import type { Budget } from "./budget.ts";
import { compare, contains, equals } from "./operators.ts";
import { Callable, Dict, integer, isNumeric, Stream, sequence, Undefined, type Value } from "./values.ts";

type Test = (value: Value, args: readonly Value[], budget: Budget) => boolean;

const isInteger = (value: Value): boolean => typeof value === "bigint";
const equal: Test = (value, [other = null], budget) => equals(value, other, budget);
const order =
  (holds: (order: number) => boolean): Test =>
  (value, [other = null], budget) =>
    holds(compare(value, other, budget));
const divides: Test = (value, [divisor = null]) =>
  integer(value, "a number") % integer(divisor, "a divisor") === 0;
const hasLength = (value: Value): boolean => typeof value === "string" || sequence(value) !== undefined;

/** Texts that `change` leaves alone, and that have letters. */
function cased(change: (text: string) => string): Test {
  return (value, _, budget) => {
    if (typeof value !== "string") return false;
    budget.text(value.length);
    return value === change(value) && value.toLowerCase() !== value.toUpperCase();
  };
}

/** Jinja's tests: what stands behind `is`, and what `select` and its kin take by name. */
const TESTS: Readonly<Record<string, Test>> = {
  defined: (value) => !(value instanceof Undefined),
  undefined: (value) => value instanceof Undefined,
  none: (value) => value === null,
  boolean: (value) => typeof value === "boolean",
  true: (value) => value === true,
  false: (value) => value === false,
  integer: isInteger,
  float: (value) => typeof value === "number",
  number: isNumeric,
  string: (value) => typeof value === "string",
  mapping: (value) => value instanceof Dict,
  sequence: (value) => hasLength(value) || value instanceof Dict || value instanceof Undefined,
  iterable: (value) =>
    hasLength(value) || value instanceof Dict || value instanceof Stream || value instanceof Undefined,
  callable: (value) => value instanceof Callable,
  odd: (value) => integer(value, "a number") % 2 !== 0,
  even: (value) => integer(value, "a number") % 2 === 0,
  divisibleby: divides,
  lower: cased((value) => value.toLowerCase()),
  upper: cased((value) => value.toUpperCase()),
  sameas: (value, [other = null]) => value === other,
  in: (value, [container = null], budget) => contains(container, value, budget),
  eq: equal,
  equalto: equal,
  "==": equal,
  ne: (value, args, budget) => !equal(value, args, budget),
  "!=": (value, args, budget) => !equal(value, args, budget),
  lt: order((by) => by < 0),
  lessthan: order((by) => by < 0),
  "<": order((by) => by < 0),
  le: order((by) => by <= 0),
  "<=": order((by) => by <= 0),
  gt: order((by) => by > 0),
  greaterthan: order((by) => by > 0),
  ">": order((by) => by > 0),
  ge: order((by) => by >= 0),
  ">=": order((by) => by >= 0),
};

/** @throws Error for a test that does not exist */
export function test(name: string, value: Value, args: readonly Value[], budget: Budget): boolean {
  if (!Object.hasOwn(TESTS, name)) throw new Error(`there is no test named '${name}'`);
  return TESTS[name]!(value, args, budget);
}
