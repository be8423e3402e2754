import type { Dice } from "./walker.ts";

type Schema = Record<string, unknown> | boolean;

const NAMES = ["a", "b", "name", "é", 'q"', "x_1"];
const PATTERNS = ["^a+$", "b", "^[A-Z]{2}\\d*$", '^[^"]{1,3}$', "x|^y$", "^.{2,4}$", "\\\\", "^(?!a)[a-c]+$"];
const FORMATS = [
  "date",
  "time",
  "date-time",
  "email",
  "ipv4",
  "ipv6",
  "uuid",
  "uri",
  "hostname",
  "duration",
  "json-pointer",
];

/** A schema out of what the converter accepts. It may be one that no value satisfies. */
export function randomSchema(dice: Dice, depth = 3): Schema {
  if (depth === 0)
    return dice.of<() => Schema>([() => string(dice), () => number(dice), () => ({ type: "boolean" })])();
  const child = () => randomSchema(dice, depth - 1);
  return dice.of<() => Schema>([
    () => string(dice),
    () => number(dice),
    () => object(dice, child),
    () => object(dice, child),
    () => array(dice, child),
    () => ({
      enum: dice.of<unknown[]>([
        ["x", "y", 3],
        [null, true, { a: [1, "b"] }],
        [[], {}],
        ['"', "\\", "\n"],
      ]),
    }),
    () => ({ const: dice.of<unknown>(["c", 5, null, { k: 1.5 }, [1, [2]]]) }),
    () => ({
      type: dice.of([
        ["string", "null"],
        ["integer", "boolean"],
        ["object", "array"],
      ]),
    }),
    () => ({ anyOf: [child(), child()] }),
    () => ({
      oneOf: [{ type: "string", pattern: "^a" }, { type: "number" }, { type: "string", enum: ["b"] }],
    }),
    () => ({ allOf: [object(dice, child), object(dice, child)] }),
    () => ({ allOf: [string(dice), string(dice)] }),
    () => ({ allOf: [number(dice), number(dice)] }),
    () => ({ $ref: "#/$defs/tree" }),
    () => dice.of<Schema>([true, {}]),
  ])();
}

/** With the definitions that random schemas refer to. */
export function randomDocument(dice: Dice): Record<string, unknown> {
  const schema = randomSchema(dice);
  const tree = {
    type: "object",
    properties: { value: { type: "integer" }, children: { type: "array", items: { $ref: "#/$defs/tree" } } },
    required: ["value"],
  };
  return typeof schema === "boolean" ? { $defs: { tree } } : { ...schema, $defs: { tree } };
}

function string(dice: Dice): Record<string, unknown> {
  return {
    type: "string",
    ...(dice.chance(0.3) && { minLength: dice.below(4) }),
    ...(dice.chance(0.3) && { maxLength: 3 + dice.below(4) }),
    ...(dice.chance(0.3) && { pattern: dice.of(PATTERNS) }),
    ...(dice.chance(0.2) && { format: dice.of(FORMATS) }),
  };
}

function number(dice: Dice): Record<string, unknown> {
  const value = () => dice.of([-1234.5, -10, -1, -0.25, 0, 0.001, 0.5, 1, 3, 10, 99, 100, 1050.75, 1e6]);
  return {
    type: dice.of(["number", "integer"]),
    ...(dice.chance(0.4) && { minimum: value() }),
    ...(dice.chance(0.4) && { maximum: value() }),
    ...(dice.chance(0.2) && { exclusiveMinimum: value() }),
    ...(dice.chance(0.2) && { exclusiveMaximum: value() }),
    ...(dice.chance(0.2) && { multipleOf: dice.of([1, 3, 10, 12]) }),
  };
}

function array(dice: Dice, child: () => Schema): Record<string, unknown> {
  return {
    type: "array",
    ...(dice.chance(0.7) && { items: dice.chance(0.1) ? false : child() }),
    ...(dice.chance(0.3) && { prefixItems: [child(), child()] }),
    ...(dice.chance(0.3) && { minItems: dice.below(3) }),
    ...(dice.chance(0.3) && { maxItems: 1 + dice.below(3) }),
  };
}

function object(dice: Dice, child: () => Schema): Record<string, unknown> {
  const names = NAMES.filter(() => dice.chance(0.4));
  return {
    type: "object",
    ...(dice.chance(0.8) && { properties: Object.fromEntries(names.map((name) => [name, child()])) }),
    ...(dice.chance(0.5) && { required: [...names, "extra"].filter(() => dice.chance(0.4)) }),
    ...(dice.chance(0.3) && { additionalProperties: dice.chance(0.4) ? false : child() }),
    ...(dice.chance(0.2) && { patternProperties: { "^x": child(), "1$": child() } }),
    ...(dice.chance(0.15) && { propertyNames: { pattern: "^[a-z_1]*$" } }),
    ...(dice.chance(0.15) && { minProperties: 1 }),
    ...(dice.chance(0.15) && { maxProperties: 1 + dice.below(3) }),
    ...(dice.chance(0.15) && { dependentRequired: { a: ["b"] } }),
  };
}
