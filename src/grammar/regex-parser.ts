import type { Budget } from "./budget.ts";
import { ANY_CHAR, type CharSet, charSet, charsOf, intersect, invert, unite } from "./char-set.ts";
import { chars, choice, type Regex, repeat, sequence } from "./regex.ts";

/** A regular expression is malformed, or not regular: the message says which part of it. */
export class RegexSyntaxError extends Error {}

/** The cost of a property: every character is looked at. */
const PROPERTY_STEPS = 50_000;
/** Characters that are looked at together. Halves of surrogate pairs are whole blocks. */
const BLOCK = 0x800;

/** One alternative of a pattern: a body, whether it is tied to the text's ends, and what else must hold where it begins. */
export interface Branch {
  readonly atStart: boolean;
  readonly atEnd: boolean;
  readonly body: Regex;
  /** Lookaheads where the body begins; each has a match there, or must not have one. */
  readonly lookaheads: readonly { readonly negative: boolean; readonly branches: readonly Branch[] }[];
}

/** Most characters of a pattern. */
export const MAX_PATTERN_LENGTH = 4096;
const MAX_DEPTH = 64;
const MAX_REPEAT = 1000;

const LINE_ENDS = charsOf("\n\r\u2028\u2029");
const DIGITS = charSet([48, 57]);
const WORD = charSet([48, 57], [65, 90], [95, 95], [97, 122]);
const SPACES = unite(
  charsOf("\t\n\v\f\r \u00a0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff"),
  [0x2000, 0x200a],
);
const CLASSES: Readonly<Record<string, CharSet>> = {
  d: DIGITS,
  D: invert(DIGITS),
  w: WORD,
  W: invert(WORD),
  s: SPACES,
  S: invert(SPACES),
};
const CONTROLS: Readonly<Record<string, number>> = { t: 9, n: 10, v: 11, f: 12, r: 13 };

type Node =
  | Regex
  | { readonly kind: "start" }
  | { readonly kind: "end" }
  | { readonly kind: "lookahead"; readonly negative: boolean; readonly options: readonly Node[][] }
  /** A group that is not repeated. */
  | { readonly kind: "group"; readonly options: readonly Node[][] };

/**
 * The alternatives of a regular expression in ECMAScript's syntax with its flag `u`, and `(?P<name>…)` for `(?<name>…)`.
 * Refused is what is not regular or needs the text around: backreferences, `\b`, lookbehind, and anchors and lookaheads in
 * the middle.
 * @throws RegexSyntaxError
 */
export function parseRegex(pattern: string, budget: Budget): readonly Branch[] {
  if (pattern.length > MAX_PATTERN_LENGTH)
    throw new RegexSyntaxError(`a pattern of more than ${MAX_PATTERN_LENGTH} characters`);
  return new Parser([...pattern], budget).parse().flatMap(branchesOf);
}

/** Of one alternative; more than one of a group that is all of it but what is tied to the ends. */
function branchesOf(nodes: readonly Node[]): readonly Branch[] {
  let atStart = false;
  let atEnd = false;
  const lookaheads: Branch["lookaheads"][number][] = [];
  let [first, last] = [0, nodes.length];
  for (; first < last; first++) {
    const node = nodes[first]!;
    if (node.kind === "start") atStart = true;
    else if (node.kind === "lookahead")
      lookaheads.push({ negative: node.negative, branches: node.options.flatMap(branchesOf) });
    else break;
  }
  for (; last > first && nodes[last - 1]!.kind === "end"; last--) atEnd = true;
  const inner = nodes.slice(first, last);
  const [only] = inner;
  if (inner.length === 1 && only?.kind === "group") {
    return only.options.flatMap(branchesOf).map((nested) => ({
      body: nested.body,
      atStart: atStart || nested.atStart,
      atEnd: atEnd || nested.atEnd,
      lookaheads: [...lookaheads, ...nested.lookaheads],
    }));
  }
  return [{ atStart, atEnd, lookaheads, body: sequence(...inner.map(regexOf)) }];
}

function regexOf(node: Node): Regex {
  if (node.kind === "group") return choice(...node.options.map((nodes) => sequence(...nodes.map(regexOf))));
  if (node.kind === "start" || node.kind === "end")
    throw new RegexSyntaxError(`${node.kind === "start" ? "^" : "$"} in the middle of a pattern`);
  if (node.kind === "lookahead") throw new RegexSyntaxError("a lookahead in the middle of a pattern");
  return node;
}

class Parser {
  #at = 0;
  #depth = 0;
  /** By their spelling. */
  readonly #properties = new Map<string, CharSet>();

  constructor(
    private readonly text: readonly string[],
    private readonly budget: Budget,
  ) {}

  parse(): Node[][] {
    const options = this.#options();
    if (this.#at < this.text.length) throw new RegexSyntaxError("a ) without its (");
    return options;
  }

  #options(): Node[][] {
    if (++this.#depth > MAX_DEPTH) throw new RegexSyntaxError("groups are nested too deeply");
    const options: Node[][] = [[]];
    for (;;) {
      const char = this.text[this.#at];
      if (char === undefined || char === ")") break;
      if (char === "|") {
        this.#at++;
        options.push([]);
      } else options.at(-1)!.push(this.#quantified());
    }
    this.#depth--;
    return options;
  }

  #quantified(): Node {
    const atom = this.#atom();
    const range = this.#quantifier();
    if (!range) return atom;
    if (atom.kind === "start" || atom.kind === "end" || atom.kind === "lookahead")
      throw new RegexSyntaxError("a quantifier after what matches no character");
    // A lazy quantifier has the same texts.
    if (this.text[this.#at] === "?") this.#at++;
    if ("*+?".includes(this.text[this.#at] ?? " ")) throw new RegexSyntaxError("two quantifiers in a row");
    return repeat(regexOf(atom), range[0], range[1]);
  }

  #quantifier(): readonly [number, number | undefined] | undefined {
    const char = this.text[this.#at];
    const simple = { "*": [0, undefined], "+": [1, undefined], "?": [0, 1] } as const;
    if (char !== undefined && Object.hasOwn(simple, char)) {
      this.#at++;
      return simple[char as keyof typeof simple];
    }
    if (char !== "{") return undefined;
    const found = /^\{(\d{1,9})(,(\d{1,9})?)?\}/.exec(this.text.slice(this.#at, this.#at + 22).join(""));
    if (!found) return undefined;
    this.#at += found[0].length;
    const min = Number(found[1]);
    const max = found[2] === undefined ? min : found[3] === undefined ? undefined : Number(found[3]);
    if (max !== undefined && max < min) throw new RegexSyntaxError(`the quantifier ${found[0]}`);
    if (Math.max(min, max ?? 0) > MAX_REPEAT)
      throw new RegexSyntaxError(`a quantifier above ${MAX_REPEAT}: ${found[0]}`);
    return [min, max];
  }

  #atom(): Node {
    const char = this.text[this.#at++]!;
    if (char === "^") return { kind: "start" };
    if (char === "$") return { kind: "end" };
    if (char === ".") return chars(invert(LINE_ENDS));
    if (char === "(") return this.#group();
    if (char === "[") return chars(this.#class());
    if (char === "\\") return chars(this.#escape(false));
    if ("*+?".includes(char)) throw new RegexSyntaxError(`nothing before the quantifier ${char}`);
    return chars(this.#literal(char));
  }

  #literal(char: string): CharSet {
    const set = intersect(charsOf(char), ANY_CHAR);
    if (set.length === 0) throw new RegexSyntaxError("half of a surrogate pair");
    return set;
  }

  #group(): Node {
    const lookahead = this.#take("?=") ? "=" : this.#take("?!") ? "!" : undefined;
    if (lookahead === undefined && !this.#take("?:") && this.text[this.#at] === "?") {
      const name = /^\?P?<[A-Za-z_$][\w$]*>/.exec(this.text.slice(this.#at, this.#at + 64).join(""));
      if (!name) {
        const shown = this.text.slice(this.#at, this.#at + 3).join("");
        throw new RegexSyntaxError(`the group (${shown}…: lookbehind, flags and conditions are not regular`);
      }
      this.#at += name[0].length;
    }
    const options = this.#options();
    if (this.text[this.#at++] !== ")") throw new RegexSyntaxError("a ( without its )");
    if (lookahead === undefined) return { kind: "group", options };
    return { kind: "lookahead", negative: lookahead === "!", options };
  }

  #class(): CharSet {
    const negated = this.#take("^");
    const sets: CharSet[] = [];
    for (;;) {
      const char = this.text[this.#at];
      if (char === undefined) throw new RegexSyntaxError("a [ without its ]");
      if (char === "]") break;
      const set = this.#classAtom();
      const isRange = this.text[this.#at] === "-" && this.text[this.#at + 1] !== "]";
      if (!isRange || this.text[this.#at + 1] === undefined) {
        sets.push(set);
        continue;
      }
      this.#at++;
      const end = this.#classAtom();
      const [first, last] = [set[0]!, end[0]!];
      const single = set.length === 2 && end.length === 2 && set[1] === first && end[1] === last;
      if (!single || first > last) throw new RegexSyntaxError("a range of a class that is none");
      sets.push(intersect([first, last], ANY_CHAR));
    }
    this.#at++;
    const set = unite(...sets);
    return negated ? invert(set) : set;
  }

  #classAtom(): CharSet {
    const char = this.text[this.#at++]!;
    return char === "\\" ? this.#escape(true) : this.#literal(char);
  }

  #escape(inClass: boolean): CharSet {
    const char = this.text[this.#at++];
    if (char === undefined) throw new RegexSyntaxError("a \\ at the end");
    if (Object.hasOwn(CLASSES, char)) return CLASSES[char]!;
    if (Object.hasOwn(CONTROLS, char)) return one(CONTROLS[char]!);
    if (inClass && char === "b") return one(8);
    if (char === "x") return one(this.#hex(2));
    if (char === "u") return one(this.#unicode());
    if (char === "c" && /^[A-Za-z]$/.test(this.text[this.#at] ?? ""))
      return one(this.text[this.#at++]!.charCodeAt(0) % 32);
    if (char === "0" && !/^\d$/.test(this.text[this.#at] ?? "")) return one(0);
    if (char === "p" || char === "P") return this.#property(char);
    if (/^[1-9k]$/.test(char)) throw new RegexSyntaxError(`the backreference \\${char} is not regular`);
    if (/^[A-Za-z0-9]$/.test(char)) throw new RegexSyntaxError(`\\${char} is not supported`);
    return this.#literal(char);
  }

  #hex(digits: number): number {
    const text = this.text.slice(this.#at, this.#at + digits).join("");
    if (text.length < digits || !/^[0-9A-Fa-f]+$/.test(text))
      throw new RegexSyntaxError("an escape without its hexadecimal digits");
    this.#at += digits;
    return Number.parseInt(text, 16);
  }

  #unicode(): number {
    if (this.#take("{")) {
      const end = this.text.indexOf("}", this.#at);
      const digits = end < 0 || end - this.#at > 8 ? 0 : end - this.#at;
      const code = this.#hex(Math.max(1, digits));
      if (code > 0x10ffff || !this.#take("}")) throw new RegexSyntaxError("the escape \\u{…}");
      return code;
    }
    const high = this.#hex(4);
    if (high < 0xd800 || high > 0xdbff || !this.#take("\\u")) return high;
    return 0x10000 + (high - 0xd800) * 0x400 + (this.#hex(4) - 0xdc00);
  }

  #property(letter: string): CharSet {
    const found = /^\{[\w=]{1,60}\}/.exec(this.text.slice(this.#at, this.#at + 64).join(""));
    const name = found?.[0] ?? "";
    this.#at += name.length;
    const spelling = `\\${letter}${name}`;
    const known = this.#properties.get(spelling);
    if (known) return known;
    let runs: RegExp;
    try {
      runs = new RegExp(`${spelling}+`, "gu");
    } catch {
      throw new RegexSyntaxError(`the property ${spelling}`);
    }
    if (name === "") throw new RegexSyntaxError(`${spelling} without a property`);
    this.budget.spend(PROPERTY_STEPS, "it has too many properties of characters");
    const set = matchedBy(runs);
    this.#properties.set(spelling, set);
    return set;
  }

  #take(text: string): boolean {
    for (let i = 0; i < text.length; i++) if (this.text[this.#at + i] !== text[i]) return false;
    this.#at += text.length;
    return true;
  }
}

/** The characters of which these runs consist. */
function matchedBy(runs: RegExp): CharSet {
  const ranges: [number, number][] = [];
  for (let first = 0; first <= 0x10ffff; first += BLOCK) {
    if (first >= 0xd800 && first < 0xe000) continue;
    const block = String.fromCodePoint(...Array.from({ length: BLOCK }, (_, i) => first + i));
    for (const [run] of block.matchAll(runs)) {
      const last = run.codePointAt(run.length - (first < 0x10000 ? 1 : 2))!;
      ranges.push([run.codePointAt(0)!, last]);
    }
  }
  return charSet(...ranges);
}

function one(code: number): CharSet {
  const set = intersect([code, code], ANY_CHAR);
  if (set.length === 0) throw new RegexSyntaxError("half of a surrogate pair");
  return set;
}
