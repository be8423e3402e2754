import type { Budget } from "./budget.ts";
import { capitalize, pad, pairs, replace, splitLines, strip } from "./methods.ts";
import { compare, equals, item, mapping } from "./operators.ts";
import { str, toJson } from "./printing.ts";
import { test } from "./tests.ts";
import {
  type Arguments,
  argument,
  Dict,
  hashable,
  integer,
  isNumeric,
  isTrue,
  iterate,
  orUndefined,
  Stream,
  sizeOf,
  Tuple,
  text,
  typeName,
  Undefined,
  type Value,
} from "./values.ts";

type Filter = (value: Value, args: Arguments, budget: Budget) => Value;

const NOT_A_NUMBER: Arguments = { positional: [Number.NaN], keywords: new Map() };

/** @throws Error for a filter that does not exist */
export function filter(name: string, value: Value, args: Arguments, budget: Budget): Value {
  if (!Object.hasOwn(FILTERS, name)) throw new Error(`there is no filter named '${name}'`);
  return FILTERS[name]!(value, args, budget);
}

/** `a.b.0` of a value: what filters mean by an attribute. */
function attributeOf(value: Value, path: Value, budget: Budget): Value {
  const parts = typeof path === "string" ? path.split(".") : [path];
  return parts.reduce((current: Value, part) => {
    if (current instanceof Undefined) throw current.error();
    const key = typeof part === "string" && /^\d+$/.test(part) ? BigInt(part) : part;
    const from = mapping(current) ?? current;
    return orUndefined(item(from, key, budget), `'${typeName(current)}' object has no attribute '${part}'`);
  }, value);
}

function size(value: Value, budget: Budget): number {
  if (value instanceof Undefined) return 0;
  if (typeof value === "string") {
    budget.step(value.length / 16);
    return /[\ud800-\udfff]/.test(value) ? Array.from(value).length : value.length;
  }
  const length = sizeOf(value);
  if (length === undefined) throw new Error(`object of type '${typeName(value)}' has no len()`);
  return length;
}

/** The key that a value is sorted by: its attribute, and without regard to case unless it is asked for. */
function sortKey(
  args: Arguments,
  caseIndex: number,
  attributeIndex: number,
  budget: Budget,
): (value: Value) => Value {
  const matters = isTrue(argument(args, caseIndex, "case_sensitive") ?? false);
  const attribute = argument(args, attributeIndex, "attribute") ?? null;
  return (value) => {
    const key = attribute === null ? value : attributeOf(value, attribute, budget);
    return matters || typeof key !== "string" ? key : key.toLowerCase();
  };
}

function sorted(
  items: readonly Value[],
  key: (value: Value) => Value,
  reverse: boolean,
  budget: Budget,
): Value[] {
  const keyed = items.map((value) => [key(value), value] as const);
  const direction = reverse ? -1 : 1;
  return keyed.sort(([a], [b]) => direction * compare(a, b, budget)).map(([, value]) => value);
}

function extreme(sign: 1 | -1): Filter {
  return (value, args, budget) => {
    const key = sortKey(args, 0, 1, budget);
    const [first, ...rest] = iterate(value, budget);
    if (first === undefined) return new Undefined("No aggregated item, sequence was empty.");
    return rest.reduce(
      (best, each) => (sign * compare(key(each), key(best), budget) > 0 ? each : best),
      first,
    );
  };
}

/** `select` and its kin: the elements that pass a test, or their attribute does; all that are true without one. */
function choose(wanted: boolean, byAttribute: boolean): Filter {
  return (value, { positional }, budget) => {
    if (!isTrue(value)) return new Stream([]);
    const [attribute, ...rest] = byAttribute ? positional : [null, ...positional];
    if (attribute === undefined) throw new Error("the filter needs an attribute");
    const [name, ...args] = rest;
    const passes = (each: Value): boolean => {
      const subject = byAttribute ? attributeOf(each, attribute, budget) : each;
      return name === undefined ? isTrue(subject) : test(text(name, "a test's name"), subject, args, budget);
    };
    return new Stream(iterate(value, budget).filter((each) => passes(each) === wanted));
  };
}

function map(value: Value, args: Arguments, budget: Budget): Value {
  if (!isTrue(value)) return new Stream([]);
  const items = iterate(value, budget);
  const attribute = args.keywords.get("attribute");
  if (attribute !== undefined && args.positional.length === 0) {
    const fallback = args.keywords.get("default");
    return new Stream(
      items.map((each) => {
        const found = attributeOf(each, attribute, budget);
        return found instanceof Undefined && fallback !== undefined ? fallback : found;
      }),
    );
  }
  const [name, ...positional] = args.positional;
  const inner = { positional, keywords: args.keywords };
  return new Stream(items.map((each) => filter(text(name, "a filter's name"), each, inner, budget)));
}

/** The elements in lists of `count`, the last filled up if there is something to fill it with. */
function batch(value: Value, args: Arguments, budget: Budget): Value {
  const count = Math.max(1, integer(argument(args, 0, "linecount"), "linecount"));
  const fill = argument(args, 1, "fill_with") ?? null;
  const items = iterate(value, budget);
  const rows: Value[][] = [];
  for (let i = 0; i < items.length; i += count) rows.push(items.slice(i, i + count));
  const last = rows.at(-1);
  if (last !== undefined && fill !== null) {
    budget.step(count);
    while (last.length < count) last.push(fill);
  }
  return new Stream(rows);
}

function groupBy(value: Value, args: Arguments, budget: Budget): Value {
  const attribute = argument(args, 0, "attribute") ?? null;
  const fold = sortKey({ positional: [], keywords: args.keywords }, 2, 3, budget);
  const keyOf = (each: Value) => attributeOf(each, attribute, budget);
  const key = (each: Value) => {
    const found = keyOf(each);
    return typeof found === "string" ? fold(found) : found;
  };
  const groups: [Value, Value[]][] = [];
  for (const each of sorted(iterate(value, budget), key, false, budget)) {
    const last = groups.at(-1);
    if (last !== undefined && equals(key(last[1][0]!), key(each), budget)) last[1].push(each);
    else groups.push([keyOf(each), [each]]);
  }
  return groups.map((group) => new Tuple(group));
}

function join(value: Value, args: Arguments, budget: Budget): Value {
  const separator = str(argument(args, 0, "d") ?? "", budget);
  const attribute = argument(args, 1, "attribute") ?? null;
  const items = iterate(value, budget);
  const texts = items.map((each) =>
    str(attribute === null ? each : attributeOf(each, attribute, budget), budget),
  );
  budget.text(texts.reduce((length, each) => length + each.length + separator.length, 0));
  return texts.join(separator);
}

function indent(value: Value, args: Arguments, budget: Budget): Value {
  const width = argument(args, 0, "width") ?? 4n;
  if (typeof width !== "string") budget.text(integer(width, "width"));
  const margin = typeof width === "string" ? width : " ".repeat(Math.max(0, integer(width, "width")));
  const blank = isTrue(argument(args, 2, "blank") ?? false);
  const lines = splitLines(`${str(value, budget)}\n`);
  budget.text((margin.length + 1) * lines.length);
  const [first = "", ...rest] = lines;
  const indented = rest.map((line) => (line === "" && !blank ? line : margin + line));
  return (isTrue(argument(args, 1, "first") ?? false) ? margin : "") + [first, ...indented].join("\n");
}

function json(value: Value, args: Arguments, budget: Budget): Value {
  const indentation = argument(args, 1, "indent") ?? null;
  if (indentation !== null && typeof indentation !== "string") budget.text(integer(indentation, "indent"));
  const margin =
    indentation === null || typeof indentation === "string"
      ? (indentation ?? undefined)
      : " ".repeat(Math.max(0, integer(indentation, "indent")));
  const given = argument(args, 2, "separators") ?? null;
  const separators = given === null ? [margin === undefined ? ", " : ",", ": "] : iterate(given, budget);
  const options = {
    ensureAscii: isTrue(argument(args, 0, "ensure_ascii") ?? false),
    indent: margin,
    separators: [text(separators[0], "a separator"), text(separators[1], "a separator")] as const,
    sortKeys: isTrue(argument(args, 3, "sort_keys") ?? false),
  };
  return toJson(value, options, budget);
}

function toInteger(value: Value, args: Arguments): Value {
  const fallback = argument(args, 0, "default") ?? 0n;
  const base = integer(argument(args, 1, "base") ?? 10n, "base");
  if (typeof value === "bigint") return value;
  if (typeof value === "boolean") return BigInt(value);
  if (typeof value === "number") return Number.isFinite(value) ? BigInt(Math.trunc(value)) : fallback;
  if (typeof value !== "string") return fallback;
  const digits = strip(value, null, "both").replaceAll("_", "");
  if (base !== 10) {
    const parsed = Number.parseInt(digits.replace(/^0[box]/i, ""), base);
    return Number.isSafeInteger(parsed) ? BigInt(parsed) : fallback;
  }
  if (/^[+-]?\d{1,77}$/.test(digits)) return BigInt(digits.replace("+", ""));
  const float = toFloat(value, NOT_A_NUMBER) as number;
  return Number.isFinite(float) ? BigInt(Math.trunc(float)) : fallback;
}

function toFloat(value: Value, args: Arguments): Value {
  const fallback = argument(args, 0, "default") ?? 0;
  if (isNumeric(value)) return Number(value);
  const digits = typeof value === "string" ? strip(value, null, "both") : "";
  return /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(digits) ? Number(digits) : fallback;
}

/** Halves go to the even neighbour, as Python rounds. */
function round(value: Value, args: Arguments): Value {
  const precision = integer(argument(args, 0, "precision") ?? 0n, "precision");
  const how = argument(args, 1, "method") ?? "common";
  if (!isNumeric(value)) throw new Error(`type ${typeName(value)} cannot be rounded`);
  if (typeof value !== "number" && precision >= 0 && how === "common") return BigInt(value);
  const scale = 10 ** precision;
  const scaled = Number(value) * scale;
  if (how === "ceil") return Math.ceil(scaled) / scale;
  if (how === "floor") return Math.floor(scaled) / scale;
  const nearest = Math.round(scaled);
  return (Math.abs(scaled % 1) === 0.5 && nearest % 2 !== 0 ? nearest - 1 : nearest) / scale;
}

function unique(value: Value, args: Arguments, budget: Budget): Value {
  const key = sortKey(args, 0, 1, budget);
  const seen = new Set<unknown>();
  const kept = iterate(value, budget).filter((each) => {
    const by = hashable(key(each));
    const known = seen.has(by);
    seen.add(by);
    return !known;
  });
  return new Stream(kept);
}

const title = (value: string): string =>
  value.replace(/[^-\s({[<]+/g, (word) => (word[0] ?? "").toUpperCase() + word.slice(1).toLowerCase());

const ESCAPED: Readonly<Record<string, string>> = {
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  "'": "&#39;",
  '"': "&#34;",
};
const escaped: Filter = (value, _, budget) =>
  str(value, budget).replace(/[&<>'"]/g, (char) => ESCAPED[char]!);
const length: Filter = (value, _, budget) => BigInt(size(value, budget));
const fallback: Filter = (value, args) => {
  const missing =
    value instanceof Undefined || (isTrue(argument(args, 1, "boolean") ?? false) && !isTrue(value));
  return missing ? (argument(args, 0, "default_value") ?? "") : value;
};
const textFilter =
  (change: (value: string, args: Arguments, budget: Budget) => string): Filter =>
  (value, args, budget) => {
    const self = str(value, budget);
    budget.text(self.length);
    return change(self, args, budget);
  };

/** Jinja's filters, and `tojson` as transformers has it. */
const FILTERS: Readonly<Record<string, Filter>> = {
  abs: (value) => {
    if (typeof value === "bigint") return value < 0n ? -value : value;
    if (isNumeric(value)) return Math.abs(Number(value));
    throw new Error(`bad operand type for abs(): '${typeName(value)}'`);
  },
  attr: (value, args, budget) => attributeOf(value, args.positional[0] ?? null, budget),
  batch,
  capitalize: textFilter(capitalize),
  center: textFilter((value, args, budget) => {
    const width = argument(args, 0, "width") ?? 80n;
    return pad(value, { positional: [width], keywords: new Map() }, "both", budget);
  }),
  count: length,
  d: fallback,
  default: fallback,
  dictsort: (value, args, budget) => {
    if (!(value instanceof Dict)) throw new Error(`'${typeName(value)}' object is not a mapping`);
    const by = argument(args, 1, "by") === "value" ? 1 : 0;
    const key = sortKey({ positional: args.positional.slice(0, 1), keywords: args.keywords }, 0, 9, budget);
    const reverse = isTrue(argument(args, 2, "reverse") ?? false);
    return sorted(pairs(value), (pair) => key((pair as Tuple).items[by]!), reverse, budget);
  },
  e: escaped,
  escape: escaped,
  first: (value, _, budget) => {
    const first = value instanceof Stream ? value.next() : iterate(value, budget)[0];
    return orUndefined(first, "No first item, sequence was empty.");
  },
  float: toFloat,
  forceescape: escaped,
  groupby: groupBy,
  indent,
  int: toInteger,
  items: (value) => {
    if (value instanceof Undefined) return new Stream([]);
    if (value instanceof Dict) return new Stream(pairs(value));
    throw new Error("Can only get item pairs from a mapping.");
  },
  join,
  last: (value, _, budget) => {
    if (value instanceof Stream) throw new Error("'generator' object is not reversible");
    return orUndefined(iterate(value, budget).at(-1), "No last item, sequence was empty.");
  },
  length,
  list: (value, _, budget) => [...iterate(value, budget)],
  lower: textFilter((value) => value.toLowerCase()),
  map,
  max: extreme(1),
  min: extreme(-1),
  reject: choose(false, false),
  rejectattr: choose(false, true),
  replace: textFilter((value, args, budget) => {
    const [from, to] = [argument(args, 0, "old") ?? null, argument(args, 1, "new") ?? null];
    const count = integer(argument(args, 2, "count") ?? -1n, "count");
    return replace(value, str(from, budget), str(to, budget), count, budget);
  }),
  reverse: (value, _, budget) => {
    const reversed = iterate(value, budget).toReversed();
    return typeof value === "string" ? reversed.join("") : new Stream(reversed);
  },
  round,
  safe: (value, _, budget) => str(value, budget),
  select: choose(true, false),
  selectattr: choose(true, true),
  sort: (value, args, budget) => {
    const reverse = isTrue(argument(args, 0, "reverse") ?? false);
    return sorted(iterate(value, budget), sortKey(args, 1, 2, budget), reverse, budget);
  },
  string: (value, _, budget) => str(value, budget),
  sum: (value, args, budget) => {
    const attribute = argument(args, 0, "attribute") ?? null;
    const numbers = iterate(value, budget).map((each) =>
      attribute === null ? each : attributeOf(each, attribute, budget),
    );
    return numbers.reduce(
      (total, each) => {
        if (!isNumeric(total) || !isNumeric(each)) throw new Error(`a sum cannot have a '${typeName(each)}'`);
        if (typeof total === "number" || typeof each === "number") return Number(total) + Number(each);
        return budget.integer(BigInt(total) + BigInt(each));
      },
      argument(args, 1, "start") ?? 0n,
    );
  },
  title: textFilter(title),
  tojson: json,
  trim: textFilter((value, args) => strip(value, argument(args, 0, "chars"), "both")),
  unique,
  upper: textFilter((value) => value.toUpperCase()),
  urlencode: textFilter((value) => encodeURIComponent(value).replaceAll("%2F", "/")),
  wordcount: (value, _, budget) => BigInt((str(value, budget).match(/[\p{L}\p{N}_]+/gu) ?? []).length),
};
