import { isJsonObject } from "../base/json-object.ts";
import type { Budget } from "./budget.ts";
import type { SchemaDocument, SchemaNode } from "./schema-document.ts";

export type JsonType = "null" | "boolean" | "number" | "string" | "array" | "object";
export type Scalar = string | number | boolean | null;

/**
 * A conjunction of schemas without `$ref`, `allOf`, `anyOf`, `oneOf`, `enum` and `const`: what one alternative of a schema asks of
 * a value.
 */
export interface Form {
  /** Their remaining keywords all apply. */
  readonly schemas: readonly SchemaNode[];
  /** At least one. */
  readonly types: ReadonlySet<JsonType>;
  /** Numbers are integers. */
  readonly integers: boolean;
  /** Only these; undefined: any of the types. */
  readonly values: readonly Scalar[] | undefined;
}

/** A part of a conjunction. */
type Leaf =
  | { readonly kind: "schema"; readonly node: SchemaNode }
  | { readonly kind: "values"; readonly values: readonly Scalar[] };

const ALL_TYPES: readonly JsonType[] = ["null", "boolean", "number", "string", "array", "object"];
/** The types that the keywords of a schema speak of; without `type` a value has one of them. */
const TYPES_OF: Readonly<Partial<Record<string, JsonType>>> = {
  ...{ minimum: "number", maximum: "number", exclusiveMinimum: "number", exclusiveMaximum: "number" },
  ...{ multipleOf: "number", minLength: "string", maxLength: "string", pattern: "string" },
  ...{ format: "string", contentEncoding: "string" },
  ...{ items: "array", prefixItems: "array", minItems: "array", maxItems: "array", uniqueItems: "array" },
  ...{ properties: "object", required: "object", additionalProperties: "object" },
  ...{ patternProperties: "object", propertyNames: "object" },
  ...{ minProperties: "object", maxProperties: "object" },
};
/** Steps for each value of an enumeration: some ten thousand of them are too many. */
const ENUMERATED_COST = 100;
const TOO_MANY = "it has too many alternatives";

/** True when no value that is written of the first form has the second. It need not find out. */
export type DisjointTest = (written: Form, other: Form) => boolean;

/**
 * Schemas in disjunctive normal form. References are followed, conjunctions merged and disjunctions multiplied out, down to
 * where a value begins; what is inside of arrays and objects stays as it is.
 */
export class SchemaForms {
  readonly #expanded = new Map<SchemaNode, readonly (readonly Leaf[])[]>();
  readonly #open = new Set<SchemaNode>();

  constructor(
    private readonly document: SchemaDocument,
    private readonly budget: Budget,
    private readonly areDisjoint: DisjointTest,
  ) {}

  /**
   * The alternatives of values that all of `nodes` allow, as they are written: of the types that keywords speak of where `type`
   * is missing. Or of all values.
   */
  of(nodes: readonly SchemaNode[], which: "written" | "all" = "written"): readonly Form[] {
    return this.#formsOf(this.#product(nodes.map((node) => this.#expand(node))), which);
  }

  #formsOf(alternatives: readonly (readonly Leaf[])[], which: "written" | "all"): readonly Form[] {
    return alternatives.flatMap((leaves) => {
      const form = this.#merge(leaves, which);
      return form ? [form] : [];
    });
  }

  #expand(node: SchemaNode): readonly (readonly Leaf[])[] {
    const known = this.#expanded.get(node);
    if (known) return known;
    if (this.#open.has(node))
      throw this.document.error("$ref", node.path, "the schema refers to itself without a value in between");
    this.#open.add(node);
    const { json } = node;
    const factors: (readonly (readonly Leaf[])[])[] = [[[{ kind: "schema", node }]]];
    if ("$ref" in json) factors.push(this.#expand(this.document.resolve(node)));
    if ("allOf" in json) for (const each of this.#branches(node, "allOf")) factors.push(this.#expand(each));
    if ("anyOf" in json) factors.push(this.#branches(node, "anyOf").flatMap((each) => this.#expand(each)));
    if ("oneOf" in json) factors.push(this.#exclusive(node));
    if ("not" in json) factors.push(this.#negation(node));
    if ("enum" in json) factors.push(this.#enumeration(node));
    if ("const" in json) factors.push(this.#values([json["const"]], `${node.path}/const`));
    if ("dependentRequired" in json) factors.push(...this.#dependencies(node, "dependentRequired"));
    if ("dependentSchemas" in json) factors.push(...this.#dependencies(node, "dependentSchemas"));
    const result = this.#product(factors);
    this.#open.delete(node);
    this.#expanded.set(node, result);
    return result;
  }

  #product(factors: readonly (readonly (readonly Leaf[])[])[]): readonly (readonly Leaf[])[] {
    let product: readonly (readonly Leaf[])[] = [[]];
    const size = (alternatives: readonly (readonly Leaf[])[]) =>
      alternatives.reduce((sum, leaves) => sum + 1 + leaves.length, 0);
    for (const factor of factors) {
      this.budget.spend(product.length * size(factor) + factor.length * size(product), TOO_MANY);
      // What a schema refers to in several ways holds once.
      product = product.flatMap((left) => factor.map((right) => [...new Set([...left, ...right])]));
    }
    return product;
  }

  #branches(node: SchemaNode, keyword: string): SchemaNode[] {
    const list = node.json[keyword];
    if (!Array.isArray(list) || list.length === 0)
      throw this.document.error(keyword, node.path, "it must be a list of schemas");
    return list.map((_, i) => this.document.child(node, keyword, i));
  }

  /** Exactly one branch is what at least one is, when no value has two of them. */
  #exclusive(node: SchemaNode): readonly (readonly Leaf[])[] {
    const branches = this.#branches(node, "oneOf").map((each) => this.#expand(each));
    const written = branches.map((each) => this.#formsOf(each, "written"));
    const all = branches.map((each) => this.#formsOf(each, "all"));
    const overlap = (i: number, j: number) =>
      written[i]!.some((a) => all[j]!.some((b) => !this.areDisjoint(a, b)));
    for (let i = 0; i < branches.length; i++) {
      for (let j = 0; j < i; j++) {
        if (!overlap(i, j) && !overlap(j, i)) continue;
        const reason = `branches ${j} and ${i} may both be valid, which cannot be ruled out; use anyOf`;
        throw this.document.error("oneOf", node.path, reason);
      }
    }
    return branches.flat();
  }

  /** Of negations, only those of everything and of nothing. */
  #negation(node: SchemaNode): readonly (readonly Leaf[])[] {
    const negated = node.json["not"];
    if (negated === false) return [[]];
    const isAll = negated === true || (isJsonObject(negated) && Object.keys(negated).length === 0);
    if (!isAll) throw this.document.error("not", node.path, "negations are not supported");
    return [];
  }

  #enumeration(node: SchemaNode): readonly (readonly Leaf[])[] {
    const values = node.json["enum"];
    if (!Array.isArray(values)) throw this.document.error("enum", node.path, "it must be a list");
    this.budget.spend(ENUMERATED_COST * values.length, "an enumeration is too long");
    return this.#values(values, `${node.path}/enum`);
  }

  /** Scalars together, and objects and arrays as schemas that they alone satisfy. */
  #values(values: readonly unknown[], path: string): readonly (readonly Leaf[])[] {
    const scalars = values.filter((value) => typeof value !== "object" || value === null) as Scalar[];
    const compounds = values.filter((value) => typeof value === "object" && value !== null) as object[];
    return [
      ...(scalars.length > 0 ? [[{ kind: "values" as const, values: [...new Set(scalars)] }]] : []),
      ...compounds.flatMap((value) => this.#expand(this.document.node(schemaOf(value), path))),
    ];
  }

  /** Without the property, or with it and what it brings along. */
  #dependencies(node: SchemaNode, keyword: string): (readonly (readonly Leaf[])[])[] {
    const given = node.json[keyword];
    if (!isJsonObject(given)) throw this.document.error(keyword, node.path, "it must be an object");
    return Object.entries(given).map(([name, needs]) => {
      const path = `${node.path}/${keyword}`;
      if (keyword === "dependentRequired" && !Array.isArray(needs))
        throw this.document.error(keyword, node.path, "it must have lists of names");
      const absent = this.document.node({ properties: { [name]: false } }, path);
      const required = Array.isArray(needs) ? [name, ...needs] : [name];
      const present = [this.document.node({ required }, path)];
      if (keyword === "dependentSchemas") present.push(this.document.child(node, keyword, name));
      return [...this.#expand(absent), ...this.#product(present.map((each) => this.#expand(each)))];
    });
  }

  /** Undefined when the leaves contradict each other in their types or values. */
  #merge(leaves: readonly Leaf[], which: "written" | "all"): Form | undefined {
    let types = new Set<JsonType>(ALL_TYPES);
    let [isTyped, integers] = [false, false];
    let values: readonly Scalar[] | undefined;
    const schemas: SchemaNode[] = [];
    for (const leaf of leaves) {
      if (leaf.kind === "values") {
        values = values ? values.filter((value) => leaf.values.includes(value)) : leaf.values;
        continue;
      }
      if (!schemas.includes(leaf.node)) schemas.push(leaf.node);
      const given = this.#types(leaf.node);
      if (!given) continue;
      isTyped = true;
      integers ||= given.includes("integer") && !given.includes("number");
      types = new Set(
        [...types].filter((type) => given.includes(type) || (type === "number" && given.includes("integer"))),
      );
    }
    if (which === "written" && !isTyped && values === undefined) {
      const meant = schemas.flatMap(({ json }) =>
        Object.keys(json).flatMap((keyword) => TYPES_OF[keyword] ?? []),
      );
      if (meant.length > 0) types = new Set(meant);
    }
    if (values) {
      values = values.filter(
        (value) =>
          types.has(typeOfScalar(value)) &&
          !(integers && typeof value === "number" && !Number.isInteger(value)),
      );
      types = new Set(values.map(typeOfScalar));
    }
    return types.size === 0 ? undefined : { schemas, types, integers, values };
  }

  #types(node: SchemaNode): readonly string[] | undefined {
    const { type } = node.json;
    if (type === undefined) return undefined;
    const list: unknown[] = Array.isArray(type) ? type : [type];
    const wrong = list.find(
      (each) => each !== "integer" && !(ALL_TYPES as readonly unknown[]).includes(each),
    );
    if (wrong !== undefined || list.length === 0)
      throw this.document.error("type", node.path, `${JSON.stringify(wrong ?? type)} is no type`);
    return list as string[];
  }
}

function typeOfScalar(value: Scalar): JsonType {
  return value === null ? "null" : (typeof value as "string" | "number" | "boolean");
}

/** A schema that only this object or array satisfies. */
function schemaOf(value: object): unknown {
  if (Array.isArray(value)) {
    const prefixItems = value.map((each: unknown) => ({ const: each }));
    return { type: "array", prefixItems, items: false, minItems: value.length, maxItems: value.length };
  }
  const properties = Object.fromEntries(Object.entries(value).map(([name, each]) => [name, { const: each }]));
  return { type: "object", properties, required: Object.keys(value), additionalProperties: false };
}
