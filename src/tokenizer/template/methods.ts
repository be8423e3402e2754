import type { Budget } from "./budget.ts";
import { equals } from "./operators.ts";
import { str } from "./printing.ts";
import {
  type Arguments,
  argument,
  Callable,
  Dict,
  integer,
  iterate,
  sequence,
  Tuple,
  text,
  typeName,
  type Value,
  View,
} from "./values.ts";

type Method<T> = (self: T, args: Arguments, budget: Budget) => Value;

/** White space as Python's `str.isspace` has it. */
const SPACE = "\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const LEADING_SPACE = new RegExp(`^[${SPACE}]+`);
const WORDS = new RegExp(`[^${SPACE}]+`, "g");
const LINE_END = "\n-\r\x1c-\x1e\x85\u2028\u2029";
const LINES = new RegExp(`\r\n|[${LINE_END}]`, "g");

/** The method `name` of a value, bound to it; undefined if there is none. A method that would change it is an error. */
export function method(value: Value, name: string, budget: Budget): Callable | undefined {
  const bind = <T>(self: T, methods: Readonly<Record<string, Method<T>>>, changing: readonly string[]) => {
    if (changing.includes(name)) {
      throw new Error(`${typeName(value)}.${name}() would change a value, which a template may not`);
    }
    if (!Object.hasOwn(methods, name)) return undefined;
    return new Callable(name, (args) => {
      if (typeof self === "string") budget.text(self.length);
      return methods[name]!(self, args, budget);
    });
  };
  if (typeof value === "string") return bind(value, TEXT_METHODS, []);
  if (value instanceof Dict) return bind(value, DICT_METHODS, DICT_CHANGES);
  const items = value instanceof View ? undefined : sequence(value);
  return items && bind(items, SEQUENCE_METHODS, value instanceof Tuple ? [] : LIST_CHANGES);
}

const DICT_CHANGES = ["clear", "pop", "popitem", "setdefault", "update"];
const LIST_CHANGES = ["append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"];

const DICT_METHODS: Readonly<Record<string, Method<Dict>>> = {
  get: (self, args) => {
    const found = self.get(args.positional[0] ?? null);
    return found === undefined ? (argument(args, 1, "default") ?? null) : found;
  },
  keys: (self) => new View("dict_keys", self.keys()),
  values: (self) => new View("dict_values", self.values()),
  items: (self) => new View("dict_items", pairs(self)),
  copy: (self) => self,
};

const SEQUENCE_METHODS: Readonly<Record<string, Method<readonly Value[]>>> = {
  count: (self, { positional: [wanted = null] }, budget) =>
    BigInt(self.filter((item) => equals(item, wanted, budget)).length),
  index: (self, { positional: [wanted = null] }, budget) => {
    const index = self.findIndex((item) => equals(item, wanted, budget));
    if (index < 0) throw new Error("the value is not in the list");
    return BigInt(index);
  },
  copy: (self) => self,
};

/** The entries of a dictionary as Python's tuples. */
export function pairs(dict: Dict): Tuple[] {
  return dict.entries().map((entry) => new Tuple(entry));
}

/** Removes white space, or the characters of `dropped`, from the ends that are named. */
export function strip(self: string, dropped: Value | undefined, ends: "both" | "left" | "right"): string {
  if (dropped === undefined || dropped === null) {
    const start = ends === "right" ? 0 : (LEADING_SPACE.exec(self)?.[0].length ?? 0);
    let end = self.length;
    while (ends !== "left" && end > start && LEADING_SPACE.test(self[end - 1]!)) end--;
    return self.slice(start, end);
  }
  const set = new Set(text(dropped, "what strip() removes"));
  const characters = Array.from(self);
  let [start, end] = [0, characters.length];
  while (ends !== "right" && start < end && set.has(characters[start]!)) start++;
  while (ends !== "left" && end > start && set.has(characters[end - 1]!)) end--;
  return characters.slice(start, end).join("");
}

/** Python's `str.capitalize`. */
export function capitalize(self: string): string {
  const [first = "", ...rest] = self;
  return first.toUpperCase() + rest.join("").toLowerCase();
}

/** The text with at most `count` (all, if negative) occurrences of `from` replaced; pays for the result first. */
export function replace(self: string, from: string, to: string, count: number, budget: Budget): string {
  budget.text(self.length);
  const pieces = from === "" ? ["", ...self, ""] : self.split(from);
  const replaced = count < 0 ? pieces.length - 1 : Math.min(count, pieces.length - 1);
  budget.text(self.length + replaced * to.length);
  const head = pieces.slice(0, replaced + 1).join(to);
  return replaced === pieces.length - 1 ? head : head + from + pieces.slice(replaced + 1).join(from);
}

function split(self: string, args: Arguments, fromRight: boolean): Value {
  const separator = argument(args, 0, "sep") ?? null;
  const most = integer(argument(args, 1, "maxsplit") ?? -1n, "maxsplit");
  const limit = most < 0 ? Number.POSITIVE_INFINITY : most;
  if (separator !== null) {
    const by = text(separator, "sep");
    if (by === "") throw new Error("empty separator");
    const pieces = self.split(by);
    if (pieces.length - 1 <= limit) return pieces;
    if (fromRight)
      return [pieces.slice(0, -limit || undefined).join(by), ...(limit ? pieces.slice(-limit) : [])];
    return [...pieces.slice(0, limit), pieces.slice(limit).join(by)];
  }
  const words = [...self.matchAll(WORDS)];
  if (words.length <= limit) return words.map(([word]) => word);
  if (fromRight) {
    const cut = words.length - limit;
    const last = words[cut - 1]!;
    return [self.slice(0, last.index + last[0].length), ...words.slice(cut).map(([word]) => word)];
  }
  return [
    ...words.slice(0, limit).map(([word]) => word),
    strip(self.slice(words[limit]!.index), null, "left"),
  ];
}

function lines(self: string, keepEnds: boolean): string[] {
  const result: string[] = [];
  let start = 0;
  for (const end of self.matchAll(LINES)) {
    result.push(self.slice(start, end.index + (keepEnds ? end[0].length : 0)));
    start = end.index + end[0].length;
  }
  return start < self.length ? [...result, self.slice(start)] : result;
}

/** Python's `str.splitlines`. */
export function splitLines(self: string): string[] {
  return lines(self, false);
}

function startsOrEnds(self: string, args: Arguments, test: (affix: string) => boolean): boolean {
  const affix = args.positional[0] ?? null;
  const affixes = affix instanceof Tuple ? affix.items : [affix];
  return affixes.some((each) => test(text(each, `what ${JSON.stringify(self.slice(0, 20))} is tested for`)));
}

/** `{}`, `{0}` and `{name}`; conversions and format specifications are errors. */
function format(self: string, { positional, keywords }: Arguments, budget: Budget): string {
  let next = 0;
  const written = self.replace(/\{\{|\}\}|\{([^{}]*)\}|[{}]/g, (found, field: string | undefined) => {
    if (found === "{{" || found === "}}") return found[0]!;
    if (field === undefined || !/^\w*$/.test(field))
      throw new Error(`the format field ${found} is not supported`);
    const value = /^\d*$/.test(field)
      ? positional[field === "" ? next++ : Number(field)]
      : keywords.get(field);
    if (value === undefined) throw new Error(`format() has no argument for ${found}`);
    return str(value, budget);
  });
  budget.text(written.length);
  return written;
}

/** Index of `wanted` in characters, or -1. */
function find(self: string, args: Arguments, last: boolean): number {
  const wanted = text(args.positional[0], "what find() looks for");
  const units = last ? self.lastIndexOf(wanted) : self.indexOf(wanted);
  return units < 0 ? -1 : Array.from(self.slice(0, units)).length;
}

function found(self: string, args: Arguments, last: boolean): bigint {
  const index = find(self, args, last);
  if (index < 0) throw new Error("substring not found");
  return BigInt(index);
}

function partition(self: string, args: Arguments, last: boolean): Tuple {
  const separator = text(args.positional[0], "sep");
  const at = last ? self.lastIndexOf(separator) : self.indexOf(separator);
  if (at < 0) return new Tuple(last ? ["", "", self] : [self, "", ""]);
  return new Tuple([self.slice(0, at), separator, self.slice(at + separator.length)]);
}

/** The text filled up with spaces (or `fill`) to `width` characters. */
export function pad(self: string, args: Arguments, side: "left" | "right" | "both", budget: Budget): string {
  const width = integer(argument(args, 0, "width"), "width");
  const fill = text(args.positional[1] ?? " ", "fill");
  const missing = Math.max(0, width - Array.from(self).length);
  budget.text(self.length + missing);
  const before = side === "left" ? missing : side === "right" ? 0 : (missing >> 1) + (missing & width & 1);
  return fill.repeat(before) + self + fill.repeat(missing - before);
}

function cased(self: string, mapped: string, other: string): boolean {
  return self === mapped && self !== other;
}

const TEXT_METHODS: Readonly<Record<string, Method<string>>> = {
  upper: (self) => self.toUpperCase(),
  lower: (self) => self.toLowerCase(),
  casefold: (self) => self.toLowerCase(),
  capitalize,
  title: (self) => self.replace(/\p{L}+/gu, capitalize),
  swapcase: (self) =>
    self.replace(/\p{L}/gu, (c) => (c === c.toUpperCase() ? c.toLowerCase() : c.toUpperCase())),
  strip: (self, args) => strip(self, args.positional[0], "both"),
  lstrip: (self, args) => strip(self, args.positional[0], "left"),
  rstrip: (self, args) => strip(self, args.positional[0], "right"),
  split: (self, args) => split(self, args, false),
  rsplit: (self, args) => split(self, args, true),
  splitlines: (self, args) => lines(self, argument(args, 0, "keepends") === true),
  join: (self, { positional: [items = null] }, budget) => {
    const texts = iterate(items, budget).map((item) => text(item, "what join() joins"));
    budget.text(texts.reduce((length, each) => length + each.length + self.length, 0));
    return texts.join(self);
  },
  replace: (self, args, budget) => {
    const [from, to] = [text(args.positional[0], "old"), text(args.positional[1], "new")];
    return replace(self, from, to, integer(argument(args, 2, "count") ?? -1n, "count"), budget);
  },
  startswith: (self, args) => startsOrEnds(self, args, (affix) => self.startsWith(affix)),
  endswith: (self, args) => startsOrEnds(self, args, (affix) => self.endsWith(affix)),
  removeprefix: (self, { positional: [affix] }) =>
    self.startsWith(text(affix, "prefix")) ? self.slice((affix as string).length) : self,
  removesuffix: (self, { positional: [affix] }) =>
    affix !== "" && self.endsWith(text(affix, "suffix")) ? self.slice(0, -(affix as string).length) : self,
  find: (self, args) => BigInt(find(self, args, false)),
  rfind: (self, args) => BigInt(find(self, args, true)),
  index: (self, args) => found(self, args, false),
  rindex: (self, args) => found(self, args, true),
  count: (self, { positional: [wanted] }) => {
    const sought = text(wanted, "what count() counts");
    return BigInt(sought === "" ? Array.from(self).length + 1 : self.split(sought).length - 1);
  },
  partition: (self, args) => partition(self, args, false),
  rpartition: (self, args) => partition(self, args, true),
  format,
  center: (self, args, budget) => pad(self, args, "both", budget),
  ljust: (self, args, budget) => pad(self, args, "right", budget),
  rjust: (self, args, budget) => pad(self, args, "left", budget),
  zfill: (self, args, budget) => {
    const sign = /^[+-]/.exec(self)?.[0] ?? "";
    const width = BigInt(integer(args.positional[0], "width") - sign.length);
    return (
      sign + pad(self.slice(sign.length), { positional: [width, "0"], keywords: new Map() }, "left", budget)
    );
  },
  isdigit: (self) => /^[\p{Nd}²³¹⁰-⁹₀-₉]+$/u.test(self),
  isdecimal: (self) => /^\p{Nd}+$/u.test(self),
  isnumeric: (self) => /^\p{N}+$/u.test(self),
  isalpha: (self) => /^\p{L}+$/u.test(self),
  isalnum: (self) => /^[\p{L}\p{N}]+$/u.test(self),
  isspace: (self) => self !== "" && strip(self, null, "both") === "",
  isupper: (self) => cased(self, self.toUpperCase(), self.toLowerCase()),
  islower: (self) => cased(self, self.toLowerCase(), self.toUpperCase()),
};
