import { beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import Ajv from "ajv/dist/2020";
import addFormats from "ajv-formats";
import { GrammarTooComplexError, InvalidRequestError, SchemaError } from "../../../src/base/errors.ts";
import { schemaGrammar } from "../../../src/grammar/schema-grammar.ts";
import { randomDocument } from "./random-schema.ts";
import { Dice, GrammarWalker } from "./walker.ts";

setDefaultTimeout(300_000);

let walker: GrammarWalker;
beforeAll(async () => {
  walker = await GrammarWalker.create();
});

const ajv = new Ajv({ strict: false, validateFormats: true });
addFormats(ajv);

const convert = (schema: unknown, compact = false) => schemaGrammar(schema, { param: "json", compact });

/** Random schemas; more of them with `OCTAVO_GRAMMAR_SCHEMAS`. */
const NUM_SCHEMAS = Number(process.env["OCTAVO_GRAMMAR_SCHEMAS"] ?? 120);

test("whatever the grammar of a random schema allows is valid under it", async () => {
  const dice = new Dice(Number(process.env["OCTAVO_GRAMMAR_SEED"] ?? 7));
  let [checked, refused] = [0, 0];
  for (let i = 0; i < NUM_SCHEMAS; i++) {
    const schema = randomDocument(dice);
    const validate = ajv.compile(schema);
    let grammar: string;
    try {
      grammar = convert(schema);
    } catch (error) {
      if (!(error instanceof InvalidRequestError)) throw error;
      refused++;
      continue;
    }
    for (const text of await walker.texts(grammar, 8, dice)) {
      const value = JSON.parse(text);
      if (!validate(value))
        throw new Error(`${text} under ${JSON.stringify(schema)}: ${JSON.stringify(validate.errors)}`);
      checked++;
    }
  }
  expect(checked).toBeGreaterThan(4 * NUM_SCHEMAS);
  expect(refused).toBeLessThan(0.25 * NUM_SCHEMAS);
});

interface Case {
  readonly schema: unknown;
  readonly good: readonly string[];
  readonly bad: readonly string[];
}

/** Texts that are written as the grammar writes them: valid ones are accepted, invalid ones are not. */
const CASES: Readonly<Record<string, Case>> = {
  "any value": {
    schema: {},
    good: ["null", "-0.5e+10", '"a\\u00e9\\ud83d\\ude00\\n"', '[1, [], {}, {"a": true}]', "[\n  1\n]"],
    bad: ["", "nul", "01", '"\n"', '"\\ud800"', "[1,]", "{a:1}", "+1", "[1 2]", '"a', "[\n\n1]"],
  },
  "properties in order, those that are missing included": {
    schema: {
      properties: { a: { type: "integer" }, b: { type: "string" }, c: { type: "null" } },
      required: ["b"],
    },
    good: ['{"b": ""}', '{"a": 1, "b": "x", "c": null}', '{\n\t"b":"x",\n\t"c":null\n}', '{"b":"","c":null}'],
    bad: [
      "{}",
      '{"a": 1}',
      '{"b": "", "a": 1}',
      '{"b": "", "d": 1}',
      '{"b": 1}',
      '{"b": "",}',
      '{, "b": ""}',
    ],
  },
  "additional properties have other names": {
    schema: { properties: { a: { type: "integer" } }, additionalProperties: { type: "boolean" } },
    good: ["{}", '{"a": 1}', '{"b": true, "aa": false}', '{"a": 1, "": true}'],
    bad: ['{"a": true}', '{"b": 1}', '{"b": true, "a": 1}', '{"\\u0061": true}'],
  },
  "names that match patterns": {
    schema: { patternProperties: { "^i_": { type: "integer" }, _s$: { type: "string" } } },
    good: ["{}", '{"i_a": 1, "b_s": "x"}'],
    bad: ['{"i_s": 1}', '{"x": 1}', '{"i_a": "x"}'],
  },
  "numbers of properties": {
    schema: { properties: { a: {}, b: {}, c: {} }, minProperties: 1, maxProperties: 2 },
    good: ['{"a": 1}', '{"b": 1, "c": 2}'],
    bad: ["{}", '{"a": 1, "b": 1, "c": 1}'],
  },
  "names that might be the same do not count twice": {
    schema: {
      properties: { a: { type: "integer" } },
      additionalProperties: { type: "integer" },
      minProperties: 2,
    },
    good: ['{"a": 1, "b": 2}', '{"a": 1, "b": 2, "c": 3}'],
    bad: ['{"a": 1}', '{"b": 1, "b": 2}', '{"b": 1}'],
  },
  names: {
    schema: { additionalProperties: { const: 1 }, propertyNames: { pattern: "^[a-c]+$", maxLength: 2 } },
    good: ["{}", '{"a": 1, "bc": 1}'],
    bad: ['{"d": 1}', '{"abc": 1}', '{"": 1}'],
  },
  "a property that another one needs": {
    schema: { properties: { a: {}, b: {} }, dependentRequired: { a: ["b"] } },
    good: ["{}", '{"b": 1}', '{"a": 1, "b": 2}'],
    bad: ['{"a": 1}'],
  },
  "a schema that a property brings along": {
    schema: {
      properties: { a: {}, b: {} },
      dependentSchemas: { a: { properties: { b: { type: "integer" } }, required: ["b"] } },
    },
    good: ["{}", '{"b": "x"}', '{"a": 1, "b": 2}'],
    bad: ['{"a": 1}', '{"a": 1, "b": "x"}'],
  },
  items: {
    schema: { prefixItems: [{ type: "string" }], items: { type: "integer" }, minItems: 1, maxItems: 3 },
    good: ['["a"]', '["a", 1, 2]'],
    bad: ["[]", "[1]", '["a", "b"]', '["a", 1, 2, 3]'],
  },
  "no items after the first": {
    schema: { prefixItems: [{ type: "integer" }], items: false },
    good: ["[]", "[1]"],
    bad: ["[1, 2]"],
  },
  "few items that differ": {
    schema: { type: "array", uniqueItems: true, maxItems: 1 },
    good: ["[1]"],
    bad: ["[1,1]"],
  },
  integers: {
    schema: { type: "integer", minimum: -12, exclusiveMaximum: 105 },
    good: ["-12", "-1", "0", "9", "99", "104"],
    bad: ["-13", "-20", "105", "200", "1000", "1.0", "1.5", "-0", "00"],
  },
  numbers: {
    schema: { type: "number", exclusiveMinimum: 0.25, maximum: 3 },
    good: ["0.26", "0.251", "1", "2.999", "3", "3.0", "3.000"],
    bad: ["0.25", "0.250", "0", "0.2", "3.01", "4", "-1", "1e1"],
  },
  "negative numbers": {
    schema: { type: "number", minimum: -2.5, exclusiveMaximum: -1 },
    good: ["-2.5", "-2", "-1.5", "-1.001", "-2.50"],
    bad: ["-2.51", "-1", "-1.0", "-0.5", "0", "1.5", "-3"],
  },
  multiples: {
    schema: { type: "integer", multipleOf: 7, minimum: 1 },
    good: ["7", "14", "700"],
    bad: ["0", "1", "8", "-7", "07"],
  },
  "lengths of strings, in characters": {
    schema: { type: "string", minLength: 1, maxLength: 2 },
    good: ['"a"', '"é😀"', '"\\n\\""'],
    bad: ['""', '"abc"', '"\n"'],
  },
  "a pattern anywhere in the text": {
    schema: { type: "string", pattern: 'a"b' },
    good: ['"a\\"b"', '"xa\\"by"', '"\\na\\"b"'],
    bad: ['"a"', '"a"b"', '"ab"'],
  },
  "a pattern and a length": {
    schema: { type: "string", pattern: "^a.*z$", maxLength: 4 },
    good: ['"az"', '"abcz"'],
    bad: ['"abcdz"', '"a"', '"a\\nz"', '"a\u2028z"'],
  },
  "characters beyond ASCII": {
    schema: { type: "string", pattern: "^[à-ï一-龥]+$" },
    good: ['"é"', '"中文"'],
    bad: ['""', '"a"', '"ÿ"', '"😀"', '"ß"'],
  },
  values: {
    schema: { enum: ["a\n", 1.5, null, true, { k: [1] }, []] },
    good: ['"a\\n"', "1.5", "null", "true", '{"k": [1]}', "[]", '{"k":[1]}'],
    bad: ["1.50", "false", "{}", "[1]", '"a"'],
  },
  "values that the rest allows": {
    schema: { enum: ["ab", "b", 1, 2, null], type: ["string", "integer"], pattern: "^a", minimum: 2 },
    good: ['"ab"', "2"],
    bad: ['"b"', "1", "null"],
  },
  "one of schemas that exclude each other": {
    schema: {
      oneOf: [
        { properties: { kind: { const: "a" }, x: { type: "integer" } }, required: ["kind"] },
        { properties: { kind: { const: "b" }, y: { type: "integer" } }, required: ["kind"] },
      ],
    },
    good: ['{"kind": "a", "x": 1}', '{"kind": "b"}'],
    bad: ['{"kind": "a", "y": 1}', '{"kind": "c"}', "{}"],
  },
  "all of schemas": {
    schema: {
      allOf: [{ properties: { a: { minimum: 3 } }, required: ["a"] }, { $ref: "#/$defs/b" }],
      $defs: { b: { type: "object", properties: { a: { maximum: 5 }, b: { type: "null" } } } },
    },
    good: ['{"a": 3}', '{"a": 5, "b": null}'],
    bad: ["{}", '{"a": 2}', '{"a": 6}', '{"b": null}'],
  },
  "a list of itself": {
    schema: { type: "array", items: { $ref: "#" } },
    good: ["[]", "[[], [[]]]"],
    bad: ["[1]", "[[]"],
  },
  dates: {
    schema: { type: "string", format: "date" },
    good: ['"2024-02-29"', '"2023-12-31"', '"2000-02-29"'],
    bad: ['"2023-02-29"', '"1900-02-29"', '"2023-13-01"', '"2023-04-31"', '"2023-1-1"'],
  },
  base64: {
    schema: { contentEncoding: "base64" },
    good: ['""', '"YQ=="', '"YWI="', '"YWJj"'],
    bad: ['"YQ"', '"Y==="', '"*"'],
  },
  "never and always": {
    schema: { anyOf: [false, { not: {} }, { const: 1 }] },
    good: ["1"],
    bad: ["2", "null"],
  },
};

describe("texts of the schema", () => {
  test.each(Object.entries(CASES))("%s", async (_, { schema, good, bad }) => {
    const grammar = convert(schema);
    for (const text of good) expect([text, await walker.accepts(grammar, text)]).toEqual([text, true]);
    for (const text of bad) expect([text, await walker.accepts(grammar, text)]).toEqual([text, false]);
    const validate = ajv.compile(schema as object);
    for (const text of good) expect([text, validate(JSON.parse(text))]).toEqual([text, true]);
  });

  test("without white space", async () => {
    const grammar = convert({ properties: { a: { type: "array" } }, required: ["a"] }, true);
    expect(await walker.accepts(grammar, '{"a":[1,{"b":2}]}')).toBe(true);
    for (const text of ['{"a": []}', '{ "a":[]}', '{"a":[1, 2]}', '{"a":[]}\n'])
      expect(await walker.accepts(grammar, text)).toBe(false);
  });
});

const NESTED = Array(300)
  .fill(0)
  .reduce((inner: object) => ({ items: inner }), {});

describe("what cannot be enforced is refused by keyword and path", () => {
  test.each<[keyword: string, path: string, schema: unknown]>([
    ["if", "", { if: {} }],
    ["else", "", { else: {} }],
    ["not", "/properties/a", { properties: { a: { not: { const: 1 } } } }],
    ["contains", "/items", { items: { contains: {} } }],
    ["uniqueItems", "/anyOf/1", { anyOf: [{ type: "null" }, { type: "array", uniqueItems: true }] }],
    ["uniqueItems", "", { uniqueItems: true, maxItems: 2 }],
    ["unevaluatedProperties", "", { unevaluatedProperties: false }],
    ["unevaluatedItems", "", { unevaluatedItems: false }],
    ["additionalItems", "", { additionalItems: false }],
    ["items", "", { items: [{}] }],
    ["dependencies", "", { dependencies: {} }],
    ["nullable", "", { type: "string", nullable: true }],
    ["contentMediaType", "", { contentMediaType: "text/html" }],
    ["contentEncoding", "", { contentEncoding: "base32" }],
    ["$anchor", "", { $anchor: "a" }],
    ["$dynamicRef", "", { $dynamicRef: "#a" }],
    ["$id", "/items", { items: { $id: "b" } }],
    ["frobnicate", "/$defs/a~1b", { $ref: "#/$defs/a~1b", $defs: { "a/b": { frobnicate: 1 } } }],
    ["$ref", "", { $ref: "http://example.com" }],
    ["$ref", "", { $ref: "#/$defs/none" }],
    ["$ref", "/$defs/a", { $ref: "#/$defs/a", $defs: { a: { anyOf: [{ $ref: "#/$defs/a" }] } } }],
    [
      "schema",
      "",
      { $ref: "#/$defs/a", $defs: { a: { type: "array", items: { $ref: "#/$defs/a" }, minItems: 1 } } },
    ],
    ["schema", "", false],
    ["schema", "", { type: "string", enum: [1] }],
    ["schema", "", 5],
    ["schema", "/items", { items: 5 }],
    ["schema", "", NESTED],
    ["oneOf", "", { oneOf: [{ type: "string" }, { minLength: 1 }] }],
    ["oneOf", "", { oneOf: [{ properties: { a: { const: 1 } }, required: ["a"] }, { type: "string" }] }],
    ["oneOf", "", { oneOf: [{ properties: { a: { const: 1 } } }, { properties: { a: { const: 2 } } }] }],
    [
      "oneOf",
      "",
      {
        type: "object",
        required: ["a"],
        oneOf: [{ properties: { a: { minLength: 2 } } }, { properties: { a: { type: "integer" } } }],
      },
    ],
    ["type", "", { type: "float" }],
    ["type", "", { type: [] }],
    ["enum", "", { enum: 5 }],
    ["anyOf", "", { anyOf: [] }],
    ["pattern", "", { pattern: "(" }],
    ["pattern", "", { pattern: "\\bword\\b" }],
    ["pattern", "", { pattern: "(a)\\1" }],
    ["pattern", "", { pattern: "(?<=a)b" }],
    ["pattern", "", { pattern: 5 }],
    ["format", "", { format: "color" }],
    ["maxLength", "", { maxLength: 1e6 }],
    ["minLength", "", { minLength: -1 }],
    ["minimum", "", { minimum: "1" }],
    ["minimum", "", { minimum: 1e-20 }],
    ["maximum", "", { type: "number", minimum: 0, maximum: 0.1234567890123456 }],
    ["multipleOf", "", { multipleOf: 0.1 }],
    ["multipleOf", "", { multipleOf: 5000 }],
    ["maxItems", "", { maxItems: 1e6 }],
    ["required", "", { required: "a" }],
    ["properties", "", { properties: [] }],
    ["minProperties", "", { type: "object", minProperties: 2 }],
    ["patternProperties", "", { patternProperties: Object.fromEntries(Array.from("abcde", (x) => [x, {}])) }],
    ["propertyNames", "/propertyNames", { propertyNames: { anyOf: [{ minLength: 1 }, { pattern: "a" }] } }],
    ["dependentRequired", "", { dependentRequired: { a: "b" } }],
  ])("%s at %p", (keyword, path, schema) => {
    let error: unknown;
    try {
      convert(schema);
    } catch (thrown) {
      error = thrown;
    }
    expect(error).toBeInstanceOf(SchemaError);
    expect(error).toMatchObject({ keyword, path, param: "json", code: "invalid_schema" });
  });

  test.each([
    ...["if", "then", "else", "contains", "minContains", "maxContains", "unevaluatedProperties"],
    ...[
      "unevaluatedItems",
      "additionalItems",
      "dependencies",
      "contentMediaType",
      "contentSchema",
      "$dynamicRef",
    ],
    ...["$dynamicAnchor", "$recursiveRef", "$recursiveAnchor", "$anchor", "nullable", "frobnicate"],
  ])("%s, wherever it is", (keyword) => {
    for (const value of [true, {}, "a", 1]) {
      const schema = { items: { anyOf: [{ type: "null" }, { type: "array", [keyword]: value }] } };
      expect(() => convert(schema)).toThrow(
        expect.objectContaining({ keyword, path: "/items/anyOf/1", code: "invalid_schema" }),
      );
    }
  });

  const many = (count: number, make: (i: number) => unknown) =>
    Object.fromEntries(Array.from({ length: count }, (_, i) => [`p${i}`, make(i)]));
  const chain = (link: (next: object) => object) =>
    many(60, (i) => (i === 59 ? { type: "integer" } : link({ $ref: `#/$defs/p${i + 1}` })));
  const numbered = (count: number, make: (i: number) => unknown) =>
    Array.from({ length: count }, (_, i) => make(i));

  test.each<[string, unknown]>([
    ["many values", { enum: numbered(30_000, (i) => i) }],
    ["values that are objects", { enum: numbered(9000, (i) => ({ a: i })) }],
    ["a pattern of exponentially many states", { pattern: "(a|b)*a(a|b){20}" }],
    ["alternatives that multiply", { allOf: Array(24).fill({ anyOf: [{ minimum: 1 }, { maximum: 5 }] }) }],
    [
      "references that multiply",
      { $ref: "#/$defs/p0", $defs: chain((next) => ({ anyOf: [next, { allOf: [next] }] })) },
    ],
    [
      "branches of which each is compared with each",
      { oneOf: numbered(2000, (i) => ({ prefixItems: [{ const: i }], minItems: 1 })) },
    ],
    ["many properties", { properties: many(15_000, () => ({})) }],
    ["many names", { required: numbered(25_000, (i) => `p${i}`) }],
    ["names that others must not have", { properties: many(3000, () => ({})), additionalProperties: true }],
    ["many patterns", { properties: many(900, (i) => ({ type: "string", pattern: `^[a-z]{0,9}${i}` })) }],
    [
      "items that are counted within each other",
      { maxItems: 4096, items: { maxItems: 4095, items: { maxItems: 4094 } } },
    ],
    ["remainders that multiply", { allOf: [997, 991, 983].map((multipleOf) => ({ multipleOf })) }],
    [
      "properties of characters",
      {
        pattern:
          numbered(40, (i) => `\\p{Script=${["Greek", "Latin"][i % 2]}}`).join("") +
          "\\p{L}\\p{Lu}\\p{Ll}\\p{N}\\p{P}\\p{S}\\p{Z}\\p{M}\\p{C}\\p{Nd}\\p{Lo}\\p{Lt}\\p{Lm}\\p{Mn}\\p{Mc}\\p{Sm}\\p{Sc}\\p{Sk}\\p{So}",
      },
    ],
  ])("%s, at the cost of a second at most", (_, schema) => {
    const before = process.cpuUsage();
    expect(() => convert(schema)).toThrow(GrammarTooComplexError);
    expect(process.cpuUsage(before).user / 1e6).toBeLessThan(2);
  });

  test("but not what is asked for several times, nor strings of many lengths", async () => {
    const schema = { $ref: "#/$defs/p0", $defs: chain((next) => ({ allOf: [next, next] })) };
    expect(await walker.accepts(convert(schema), "12")).toBe(true);
    const strings = convert({ properties: many(300, (i) => ({ type: "string", maxLength: 240 + (i % 9) })) });
    expect(strings.match(/^text/gm)).toHaveLength(249);
  });

  test("but not annotations, nor what no value can reach", async () => {
    const schema = {
      ...{ $schema: "https://json-schema.org/draft/2020-12/schema", $id: "a", title: "t", description: "d" },
      ...{ default: 1, examples: [1], deprecated: true, readOnly: true, "x-order": 1, $comment: "c" },
      $defs: { unused: { frobnicate: true } },
      const: 1,
    };
    expect(await walker.accepts(convert(schema), "1")).toBe(true);
  });
});
