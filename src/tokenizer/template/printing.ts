import { type Budget, MAX_NESTING } from "./budget.ts";
import { Callable, Dict, Namespace, Tuple, typeName, Undefined, type Value, View } from "./values.ts";

/** Python's `str(value)`: what `{{ value }}` prints. */
export function str(value: Value, budget: Budget): string {
  if (typeof value === "string") return value;
  return value instanceof Undefined ? "" : repr(value, budget);
}

/** Python's `repr(value)`: how a list prints its elements. */
export function repr(value: Value, budget: Budget, nesting = 0): string {
  if (nesting > MAX_NESTING) throw new Error(`a value nests more than ${MAX_NESTING} deep`);
  budget.step();
  const inner = (item: Value) => repr(item, budget, nesting + 1);
  const list = (items: readonly Value[]) => items.map(inner).join(", ");
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value === "bigint") return String(value);
  if (typeof value === "number") return floatText(value);
  if (typeof value === "string") return quoted(value, budget);
  if (Array.isArray(value)) return `[${list(value)}]`;
  if (value instanceof Tuple)
    return value.items.length === 1 ? `(${list(value.items)},)` : `(${list(value.items)})`;
  if (value instanceof Dict) {
    return `{${value
      .entries()
      .map(([key, item]) => `${inner(key)}: ${inner(item)}`)
      .join(", ")}}`;
  }
  if (value instanceof View)
    return value.type === "range" ? rangeText(value.items) : `${value.type}([${list(value.items)}])`;
  if (value instanceof Namespace) return `<Namespace ${inner(new Dict(value.fields))}>`;
  if (value instanceof Undefined) return "Undefined";
  return value instanceof Callable ? `<function ${value.name}>` : `<${typeName(value)} object>`;
}

/** Python's shortest spelling of a float: always with a point or an exponent of at least two digits. */
export function floatText(value: number): string {
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "nan" : value > 0 ? "inf" : "-inf";
  const [digits, exponent] = value.toExponential().split("e") as [string, string];
  const power = Number(exponent);
  if (power < -4 || power >= 16) {
    return `${Object.is(value, -0) ? "-0" : digits}e${exponent[0]}${exponent.slice(1).padStart(2, "0")}`;
  }
  const plain = power < 0 ? value.toFixed(digits.replace(/[-.]/g, "").length - 1 - power) : String(value);
  const signed = Object.is(value, -0) ? "-0" : plain;
  return signed.includes(".") ? signed : `${signed}.0`;
}

function rangeText(items: readonly Value[]): string {
  const [first = 0n, second = (first as bigint) + 1n] = items as bigint[];
  const step = second - first;
  const stop = items.length === 0 ? 0n : (items.at(-1) as bigint) + (step > 0n ? 1n : -1n);
  return step === 1n ? `range(${first}, ${stop})` : `range(${first}, ${stop}, ${step})`;
}

const ESCAPES: Readonly<Record<string, string>> = { "\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\" };

function quoted(value: string, budget: Budget): string {
  budget.text(value.length);
  const quote = value.includes("'") && !value.includes('"') ? '"' : "'";
  const escaped = value.replace(/[\\\p{C}\p{Z}]/gu, (char) => {
    if (char === " ") return char;
    const code = char.codePointAt(0)!;
    const hex = (width: number) => code.toString(16).padStart(width, "0");
    return (
      ESCAPES[char] ?? (code < 0x100 ? `\\x${hex(2)}` : code < 0x10000 ? `\\u${hex(4)}` : `\\U${hex(8)}`)
    );
  });
  return quote + (quote === "'" ? escaped.replaceAll("'", "\\'") : escaped) + quote;
}

export interface JsonOptions {
  readonly ensureAscii: boolean;
  /** The indentation of each level; undefined writes one line. */
  readonly indent: string | undefined;
  /** Between elements, and between key and value. */
  readonly separators: readonly [string, string];
  readonly sortKeys: boolean;
}

/** Python's `json.dumps(value)`. @throws Error for a value that is not JSON's */
export function toJson(value: Value, options: JsonOptions, budget: Budget): string {
  const { ensureAscii, indent, separators, sortKeys } = options;
  const string = (content: string) => {
    budget.text(content.length);
    const json = JSON.stringify(content);
    if (!ensureAscii) return json;
    return json.replace(
      /[\u007f-\uffff]/g,
      (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`,
    );
  };
  const block = (open: string, parts: readonly string[], close: string, level: number): string => {
    if (parts.length === 0) return open + close;
    const line = indent === undefined ? "" : `\n${indent.repeat(level + 1)}`;
    const end = indent === undefined ? "" : `\n${indent.repeat(level)}`;
    budget.text((line.length + separators[0].length) * parts.length);
    return open + line + parts.join(separators[0] + line) + end + close;
  };
  const write = (item: Value, level: number): string => {
    if (level > MAX_NESTING) throw new Error(`a value nests more than ${MAX_NESTING} deep`);
    budget.step();
    if (item === null || typeof item === "boolean") return String(item);
    if (typeof item === "bigint") return String(item);
    if (typeof item === "number") return jsonFloat(item);
    if (typeof item === "string") return string(item);
    const list = Array.isArray(item) ? item : item instanceof Tuple ? item.items : undefined;
    if (list !== undefined)
      return block(
        "[",
        list.map((each) => write(each, level + 1)),
        "]",
        level,
      );
    if (!(item instanceof Dict)) throw new Error(`Object of type ${typeName(item)} is not JSON serializable`);
    const entries = item.entries();
    if (sortKeys) entries.sort(([a], [b]) => (text(a) < text(b) ? -1 : 1));
    budget.text(separators[1].length * entries.length);
    const fields = entries.map(([key, each]) => string(text(key)) + separators[1] + write(each, level + 1));
    return block("{", fields, "}", level);
  };
  const text = (key: Value) => (typeof key === "string" ? key : write(key, 0));
  return write(value, 0);
}

function jsonFloat(value: number): string {
  if (Number.isNaN(value)) return "NaN";
  return Number.isFinite(value) ? floatText(value) : value > 0 ? "Infinity" : "-Infinity";
}
