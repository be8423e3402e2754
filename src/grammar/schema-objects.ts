import { isJsonObject } from "../base/json-object.ts";
import {
  type Automaton,
  automatonOf,
  automatonOfWords,
  both,
  isEmpty,
  matches,
  restrict,
  without,
} from "./automaton.ts";
import type { Budget } from "./budget.ts";
import { WRITABLE } from "./grammar-text.ts";
import { ANY_TEXT } from "./regex.ts";
import type { SchemaDocument, SchemaNode } from "./schema-document.ts";
import type { Form, SchemaForms } from "./schema-forms.ts";
import type { SchemaScalars } from "./schema-scalars.ts";

/** A property by its name. */
export interface NamedProperty {
  readonly name: string;
  readonly required: boolean;
  /** All of these hold for the value. */
  readonly schemas: readonly SchemaNode[];
}

/** Properties by the form of their names. */
export interface FreeProperties {
  /** Undefined: any name. */
  readonly names: Automaton | undefined;
  readonly schemas: readonly SchemaNode[];
}

/** The members that a form's objects may have. */
export interface ObjectMembers {
  readonly named: readonly NamedProperty[];
  /** Their names are apart from each other and from those of `named`. */
  readonly free: readonly FreeProperties[];
  readonly min: number;
  readonly max: number;
}

/** Most patterns of property names: each combination of them is a kind of property. */
const MAX_PATTERNS = 4;

/** Finds out what members objects of a form have. */
export class SchemaObjects {
  constructor(
    private readonly document: SchemaDocument,
    private readonly forms: SchemaForms,
    private readonly scalars: SchemaScalars,
    private readonly budget: Budget,
  ) {}

  members({ schemas }: Form): ObjectMembers {
    const all = schemas.map((node) => this.#read(node));
    const required = new Set(all.flatMap((each) => each.required));
    const names = new Set([...all.flatMap(({ properties }) => [...properties]), ...required]);
    const nameTexts = this.#allowedNames(all);
    const named: NamedProperty[] = [];
    for (const name of names) {
      const isNamed = !nameTexts || matches(nameTexts, name);
      const values = all.flatMap((each) => this.#schemasFor(each, name));
      if (!isNamed) values.push(this.document.node(false, ""));
      named.push({ name, required: required.has(name), schemas: unique(values) });
    }
    const min = Math.max(0, ...all.map(({ min }) => min));
    const max = Math.min(Number.POSITIVE_INFINITY, ...all.map(({ max }) => max));
    const blamed = all.find((each) => each.min === min)?.node;
    this.#checkMinimum(blamed, min, named.length);
    const patterns = [...new Set(all.flatMap((each) => each.patterns.map(({ pattern }) => pattern)))];
    const says = all.some(({ additional }) => additional !== undefined);
    // What nobody speaks of is left out, unless there is nothing else to write.
    const isOpen = says || (named.length === 0 && patterns.length === 0) || min > named.length;
    return { named, free: this.#free(all, patterns, names, nameTexts, isOpen), min, max };
  }

  /** Names that are not known apart could be the same one. */
  #checkMinimum(node: SchemaNode | undefined, min: number, numNamed: number): void {
    if (!node || min <= numNamed + 1) return;
    const reason = "it needs several properties whose names are not given, which could be the same";
    throw this.document.error("minProperties", node.path, reason);
  }

  #read(node: SchemaNode): ReadObject {
    const { json, path } = node;
    const object = (keyword: string) => {
      const value = json[keyword];
      if (value === undefined) return {};
      if (isJsonObject(value)) return value;
      throw this.document.error(keyword, path, "it must be an object");
    };
    const required = json["required"] ?? [];
    if (!Array.isArray(required) || required.some((name) => typeof name !== "string"))
      throw this.document.error("required", path, "it must be a list of names");
    const patterns = Object.keys(object("patternProperties")).map((pattern) => ({
      pattern,
      texts: this.scalars.pattern(node, "patternProperties", pattern),
      schema: this.document.child(node, "patternProperties", pattern),
    }));
    return {
      node,
      properties: new Set(Object.keys(object("properties"))),
      required,
      patterns,
      additional:
        "additionalProperties" in json ? this.document.child(node, "additionalProperties") : undefined,
      names: "propertyNames" in json ? this.document.child(node, "propertyNames") : undefined,
      min: this.scalars.count(node, "minProperties") ?? 0,
      max: this.scalars.count(node, "maxProperties") ?? Number.POSITIVE_INFINITY,
    };
  }

  /** What one schema asks of the property of this name. */
  #schemasFor({ node, properties, patterns, additional }: ReadObject, name: string): SchemaNode[] {
    const schemas = patterns.filter(({ texts }) => matches(texts, name)).map(({ schema }) => schema);
    if (properties.has(name)) schemas.push(this.document.child(node, "properties", name));
    if (schemas.length > 0) return schemas;
    return additional ? [additional] : [];
  }

  /** The names that every `propertyNames` allows; undefined: all. */
  #allowedNames(all: readonly ReadObject[]): Automaton | undefined {
    const given = all.flatMap(({ names }) => names ?? []);
    if (given.length === 0) return undefined;
    const strings = this.document.node({ type: "string" }, given[0]!.path);
    let allowed: Automaton = automatonOfWords([]);
    const forms = this.forms.of([...given, strings]);
    if (forms.length > 1)
      throw this.document.error("propertyNames", given[0]!.path, "alternatives of names are not supported");
    for (const form of forms) {
      const values = this.scalars.values(form);
      allowed = values
        ? automatonOfWords(values as readonly string[])
        : (this.scalars.strings(form) ?? automatonOf(ANY_TEXT, this.budget));
    }
    return allowed;
  }

  #free(
    all: readonly ReadObject[],
    patterns: readonly string[],
    names: ReadonlySet<string>,
    nameTexts: Automaton | undefined,
    isOpen: boolean,
  ): FreeProperties[] {
    if (patterns.length > MAX_PATTERNS) {
      const { node } = all.find((each) => each.patterns.length > 0)!;
      throw this.document.error(
        "patternProperties",
        node.path,
        `there are more than ${MAX_PATTERNS} patterns`,
      );
    }
    const texts = new Map(all.flatMap((each) => each.patterns.map(({ pattern, texts }) => [pattern, texts])));
    const free: FreeProperties[] = [];
    // Each combination of patterns that a name matches: bit i stands for pattern i.
    for (let combination = isOpen ? 0 : 1; combination < 1 << patterns.length; combination++) {
      const matched = new Set(patterns.filter((_, i) => (combination >> i) & 1));
      const schemas = unique(
        all.flatMap(({ patterns: own, additional }) => {
          const found = own.filter(({ pattern }) => matched.has(pattern)).map(({ schema }) => schema);
          return found.length > 0 || !additional ? found : [additional];
        }),
      );
      if (this.forms.of(schemas).length === 0) continue;
      let allowed = nameTexts;
      if (names.size + patterns.length > 0) {
        allowed ??= automatonOf(ANY_TEXT, this.budget);
        allowed = without(allowed, automatonOfWords(names), this.budget);
        for (const pattern of patterns)
          allowed = (matched.has(pattern) ? both : without)(allowed, texts.get(pattern)!, this.budget);
      }
      if (allowed) allowed = restrict(allowed, WRITABLE, this.budget);
      if (!allowed || !isEmpty(allowed)) free.push({ names: allowed, schemas });
    }
    return free;
  }
}

interface ReadObject {
  readonly node: SchemaNode;
  readonly properties: ReadonlySet<string>;
  readonly required: readonly string[];
  readonly patterns: readonly {
    readonly pattern: string;
    readonly texts: Automaton;
    readonly schema: SchemaNode;
  }[];
  readonly additional: SchemaNode | undefined;
  readonly names: SchemaNode | undefined;
  readonly min: number;
  readonly max: number;
}

function unique(nodes: readonly SchemaNode[]): readonly SchemaNode[] {
  return [...new Set(nodes)];
}
