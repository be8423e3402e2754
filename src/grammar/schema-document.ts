import { SchemaError } from "../base/errors.ts";
import { isJsonObject, type JsonObject } from "../base/json-object.ts";

/** A schema of a document: an object, as every other kind is turned into one. */
export interface SchemaNode {
  /** In order of discovery: nodes are compared by it. */
  readonly id: number;
  /** JSON pointer; "" is the root. */
  readonly path: string;
  readonly json: JsonObject;
}

/** Keywords that say nothing about which values are valid. */
const ANNOTATIONS: ReadonlySet<string> = new Set([
  ...["title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly"],
  ...["$comment", "$schema", "$defs", "definitions", "$vocabulary"],
]);

/** Keywords that are enforced, perhaps with some values refused. */
const ENFORCED: ReadonlySet<string> = new Set([
  ...[
    "$ref",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "type",
    "enum",
    "const",
    "dependentRequired",
    "dependentSchemas",
  ],
  ...["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"],
  ...["minLength", "maxLength", "pattern", "format", "contentEncoding"],
  ...["items", "prefixItems", "minItems", "maxItems", "uniqueItems"],
  ...["properties", "required", "additionalProperties", "patternProperties", "propertyNames"],
  ...["minProperties", "maxProperties"],
]);

/** Why keywords of JSON Schema are not enforced. Others are unknown to it. */
const REFUSED: Readonly<Record<string, string>> = {
  if: "conditions are not supported",
  // biome-ignore lint/suspicious/noThenProperty: a keyword of JSON Schema
  then: "conditions are not supported",
  else: "conditions are not supported",
  contains: "arrays that must contain something are not supported",
  minContains: "arrays that must contain something are not supported",
  maxContains: "arrays that must contain something are not supported",
  unevaluatedProperties: "use additionalProperties",
  unevaluatedItems: "use items",
  additionalItems: "use prefixItems and items",
  dependencies: "use dependentRequired or dependentSchemas",
  contentMediaType: "the content of strings is not supported",
  contentSchema: "the content of strings is not supported",
  $dynamicRef: "only $ref within the document is supported",
  $dynamicAnchor: "only $ref within the document is supported",
  $recursiveRef: "only $ref within the document is supported",
  $recursiveAnchor: "only $ref within the document is supported",
  $anchor: "only JSON pointers are supported as the target of $ref",
  nullable: 'use type: [..., "null"]',
};

const MAX_DEPTH = 256;

/** The schemas of a JSON Schema document by identity and by JSON pointer. */
export class SchemaDocument {
  readonly root: SchemaNode;
  readonly #nodes = new Map<object, SchemaNode>();

  /** @throws SchemaError if it is no schema */
  constructor(
    /** The parameter that the schema came in. */
    readonly param: string,
    private readonly json: unknown,
  ) {
    assertDepth(param, json);
    this.root = this.node(json, "");
  }

  /** The node of a schema at this path; `true` is the schema without keywords and `false` the enumeration of nothing. */
  node(json: unknown, path: string): SchemaNode {
    const schema = json === true ? TRUE : json === false ? FALSE : json;
    if (!isJsonObject(schema)) throw this.error("schema", path, "it is neither an object nor true nor false");
    const known = this.#nodes.get(schema);
    if (known) return known;
    const node = { id: this.#nodes.size, path, json: schema };
    this.#nodes.set(schema, node);
    this.#checkKeywords(node);
    return node;
  }

  /** The schema under a keyword of `node`. */
  child(node: SchemaNode, ...keys: readonly (string | number)[]): SchemaNode {
    let json: unknown = node.json;
    for (const key of keys) json = (json as Record<string | number, unknown>)[key];
    return this.node(json, `${node.path}${keys.map((key) => `/${escapePointer(String(key))}`).join("")}`);
  }

  /** The target of `$ref` in `node`. */
  resolve(node: SchemaNode): SchemaNode {
    const ref = node.json["$ref"];
    const refuse = (reason: string) => this.error("$ref", node.path, `${JSON.stringify(ref)} ${reason}`);
    if (typeof ref !== "string") throw refuse("is no text");
    if (ref !== "#" && !ref.startsWith("#/")) throw refuse("is not a JSON pointer within the document");
    let pointer: string;
    try {
      pointer = decodeURIComponent(ref.slice(1));
    } catch {
      throw refuse("is not a JSON pointer within the document");
    }
    let json: unknown = this.json;
    for (const token of pointer.split("/").slice(1)) {
      const key = token.replaceAll("~1", "/").replaceAll("~0", "~");
      const holds = typeof json === "object" && json !== null && Object.hasOwn(json, key);
      if (!holds) throw refuse("leads nowhere");
      json = (json as Record<string, unknown>)[key];
    }
    return this.node(json, pointer);
  }

  error(keyword: string, path: string, reason: string): SchemaError {
    return new SchemaError(this.param, keyword, path, reason);
  }

  #checkKeywords({ json, path }: SchemaNode): void {
    for (const keyword of Object.keys(json)) {
      if (ENFORCED.has(keyword) || ANNOTATIONS.has(keyword) || keyword.startsWith("x-")) continue;
      // An identifier of the whole document changes no reference within it.
      if (keyword === "$id" && path === "") continue;
      const reason = Object.hasOwn(REFUSED, keyword)
        ? REFUSED[keyword]!
        : "it is no keyword that can be enforced";
      throw this.error(keyword, path, reason);
    }
  }
}

const TRUE: JsonObject = Object.freeze({});
const FALSE: JsonObject = Object.freeze({ enum: Object.freeze([]) });

function escapePointer(key: string): string {
  return key.replaceAll("~", "~0").replaceAll("/", "~1");
}

/** Recursion over a document that is deeper would exhaust the stack. */
function assertDepth(param: string, json: unknown): void {
  let level: unknown[] = [json];
  for (let depth = 0; level.length > 0; depth++) {
    if (depth > MAX_DEPTH)
      throw new SchemaError(param, "schema", "", `it is nested more than ${MAX_DEPTH} deep`);
    level = level.flatMap((value) =>
      typeof value === "object" && value !== null
        ? Object.values(value).filter((each) => typeof each === "object" && each !== null)
        : [],
    );
  }
}
