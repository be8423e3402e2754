import { escaped } from "./python-string.ts";

type Schema = Readonly<Record<string, unknown>>;

/** References that are followed from one schema: those of one that refers to itself have no end. */
const MAX_REFERENCES = 16;

/** The schema that a reference within the document leads to; undefined: there is none. */
function referred(reference: unknown, document: Schema | undefined): unknown {
  if (typeof reference !== "string" || !reference.startsWith("#")) return undefined;
  const steps = reference.split("/").slice(1);
  return steps.reduce<unknown>((at, step) => {
    const key = decodeURIComponent(step).replaceAll("~1", "/").replaceAll("~0", "~");
    return typeof at === "object" && at !== null && Object.hasOwn(at, key) ? (at as Schema)[key] : undefined;
  }, document);
}

/** Types that a value may have, as far as its schema, which is a part of the document, says. */
function typesOf(schema: unknown, document: Schema | undefined, depth = 0): ReadonlySet<string> {
  const { type, $ref, enum: values, const: value, anyOf, oneOf, allOf } = (schema ?? {}) as Schema;
  if (depth > MAX_REFERENCES) return new Set();
  if ($ref !== undefined && type === undefined) return typesOf(referred($ref, document), document, depth + 1);
  if (typeof type === "string") return new Set([type]);
  if (Array.isArray(type)) return new Set(type.filter((entry) => typeof entry === "string"));
  const parts = [anyOf, oneOf, allOf].find(Array.isArray) as readonly unknown[] | undefined;
  if (parts) return new Set(parts.flatMap((part) => [...typesOf(part, document, depth + 1)]));
  const constants = Array.isArray(values) ? values : value === undefined ? [] : [value];
  return new Set(constants.map(typeOf));
}

function typeOf(value: unknown): string {
  if (value === null) return "null";
  if (Array.isArray(value)) return "array";
  return typeof value;
}

/**
 * The JSON object of parameters whose values come as bare text. A value is converted to a type that the tool's schema
 * gives it, if it has that form; otherwise, and where the schema says nothing, it is a string. One line break at each end
 * of a value is no part of it.
 */
export class TypedArguments {
  #isFirst = true;
  #types: ReadonlySet<string> = new Set();
  /** A string whose end may still be a line break that is no part of it; another value as far as it has come. */
  #held = "";
  #hasBegun = false;
  #isOpen = false;

  constructor(
    private readonly schema: Schema | undefined,
    private readonly out: (json: string) => void,
  ) {}

  /** Begins a parameter; the one before has ended. */
  begin(name: string): void {
    const properties = this.schema?.["properties"] as Schema | undefined;
    const known = properties && Object.hasOwn(properties, name) ? properties[name] : undefined;
    this.#types = typesOf(known, this.schema);
    this.out(`${this.#isFirst ? "{" : ", "}${JSON.stringify(name)}: `);
    this.#isFirst = false;
    this.#held = "";
    this.#hasBegun = false;
    this.#isOpen = true;
    if (this.#isString) this.out('"');
  }

  /** Adds text to the value. */
  value(text: string): void {
    let more = text;
    if (!this.#hasBegun && more !== "") {
      this.#hasBegun = true;
      if (more.startsWith("\n")) more = more.slice(1);
    }
    const all = this.#held + more;
    this.#held = all;
    if (!this.#isString) return;
    const certain = all.endsWith("\n") ? all.slice(0, -1) : all;
    this.#held = all.slice(certain.length);
    if (certain !== "") this.out(escaped(certain));
  }

  /** Ends the value. */
  end(): void {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    if (this.#isString) this.out('"');
    else this.out(converted(this.#held.replace(/\n$/, ""), this.#types));
  }

  /** Ends the object, and a value that has not ended. */
  close(): void {
    this.end();
    this.out("}");
  }

  get #isString(): boolean {
    return this.#types.size === 0 || (this.#types.size === 1 && this.#types.has("string"));
  }
}

/** The JSON of a value of one of the types; of a string if it has the form of none. */
function converted(text: string, types: ReadonlySet<string>): string {
  const bare = text.trim();
  const word = bare.toLowerCase();
  if (types.has("boolean") && (word === "true" || word === "false")) return word;
  if (word === "null" || word === "none")
    return types.has("string") && !types.has("null") ? JSON.stringify(text) : "null";
  let value: unknown;
  try {
    value = JSON.parse(bare);
  } catch {
    return JSON.stringify(text);
  }
  const isInteger = typeof value === "number" && /^-?\d+$/.test(bare);
  const fits = types.has(typeOf(value)) || (isInteger && types.has("integer"));
  return fits ? bare : JSON.stringify(text);
}
