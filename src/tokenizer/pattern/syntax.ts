/**
 * A regular expression as Oniguruma reads it in its Ruby syntax, which is what patterns of tokenizer.json are written
 * in. A set matches one code point; its source is an atom of a JavaScript expression with the flag `v`.
 */
export type Pattern =
  | { readonly kind: "set"; readonly source: string }
  | { readonly kind: "sequence" | "choice"; readonly items: readonly Pattern[] }
  | {
      readonly kind: "repeat";
      readonly item: Pattern;
      readonly min: number;
      readonly max: number;
      readonly mode: "greedy" | "lazy" | "possessive";
    }
  | { readonly kind: "look"; readonly item: Pattern; readonly ahead: boolean; readonly negative: boolean }
  | { readonly kind: "atomic"; readonly item: Pattern }
  | { readonly kind: "anchor"; readonly at: Anchor };

export type Anchor = "textStart" | "textEnd" | "lineStart" | "lineEnd" | "lastLineEnd" | "word" | "noWord";

const WORD = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}";
/** Oniguruma counts these among words outside of brackets only. */
const WORD_OUTSIDE = `[${WORD}\\xb2\\xb3\\xb9\\xbc-\\xbe]`;
const HEX = "[0-9A-Fa-f]";
const MAX_DEPTH = 100;
const MAX_REPEAT = 100_000;

/** Letters behind a backslash that stand for a class of characters, each with its atom within brackets. */
const CLASSES: Readonly<Record<string, string>> = {
  d: "\\p{Nd}",
  D: "\\P{Nd}",
  s: "\\p{White_Space}",
  S: "\\P{White_Space}",
  w: `[${WORD}]`,
  W: `[^${WORD}]`,
  h: HEX,
  H: `[^${HEX.slice(1)}`,
};
const CONTROLS: Readonly<Record<string, string>> = {
  a: "\\x07",
  e: "\\x1b",
  f: "\\f",
  n: "\\n",
  r: "\\r",
  t: "\\t",
  v: "\\v",
};
const ANCHORS: Readonly<Record<string, Anchor>> = {
  A: "textStart",
  z: "textEnd",
  Z: "lastLineEnd",
  b: "word",
  B: "noWord",
};
const POSIX: Readonly<Record<string, string>> = {
  alnum: "[\\p{Alphabetic}\\p{Nd}]",
  alpha: "\\p{Alphabetic}",
  ascii: "[\\x00-\\x7f]",
  blank: "[\\t\\p{Zs}]",
  cntrl: "\\p{Cc}",
  digit: "\\p{Nd}",
  graph: "[[^\\p{White_Space}]--[\\p{Cc}\\p{Cn}\\p{Cs}]]",
  lower: "\\p{Lowercase}",
  print: "[[[^\\p{White_Space}]--[\\p{Cc}\\p{Cn}\\p{Cs}]]\\p{Zs}]",
  punct: "[\\p{P}\\p{S}]",
  space: "\\p{White_Space}",
  upper: "\\p{Uppercase}",
  word: `[${WORD}]`,
  xdigit: HEX,
};

/** The class of the word characters that word boundaries are about. */
export const WORD_SET = WORD_OUTSIDE;

/** @throws SyntaxError for what is malformed, or means what the engines below have no notion of */
export function parsePattern(source: string): Pattern {
  return new Parser(source).whole();
}

class Parser {
  readonly #source: string;
  #at = 0;
  #depth = 0;
  #ignoreCase = false;
  #dotAll = false;

  constructor(source: string) {
    this.#source = source;
  }

  whole(): Pattern {
    const pattern = this.#choice();
    if (this.#at < this.#source.length) this.#fail("an unmatched )");
    return pattern;
  }

  #fail(what: string): never {
    throw new SyntaxError(`the pattern ${JSON.stringify(this.#source.slice(0, 200))} has ${what}`);
  }

  #accept(text: string): boolean {
    const found = this.#source.startsWith(text, this.#at);
    if (found) this.#at += text.length;
    return found;
  }

  #match(pattern: RegExp): RegExpExecArray | undefined {
    const match = pattern.exec(this.#source.slice(this.#at, this.#at + 64));
    if (match !== null) this.#at += match[0].length;
    return match ?? undefined;
  }

  #next(): string {
    const code = this.#source.codePointAt(this.#at);
    if (code === undefined) this.#fail("no end");
    const character = String.fromCodePoint(code);
    this.#at += character.length;
    return character;
  }

  #choice(): Pattern {
    if (++this.#depth > MAX_DEPTH) this.#fail(`groups nested more than ${MAX_DEPTH} deep`);
    const [ignoreCase, dotAll] = [this.#ignoreCase, this.#dotAll];
    const items = [this.#sequence()];
    while (this.#accept("|")) items.push(this.#sequence());
    [this.#ignoreCase, this.#dotAll] = [ignoreCase, dotAll];
    this.#depth--;
    return items.length === 1 ? items[0]! : { kind: "choice", items };
  }

  #sequence(): Pattern {
    const items: Pattern[] = [];
    while (this.#at < this.#source.length && !/[|)]/.test(this.#source[this.#at]!)) {
      const atom = this.#atom();
      if (atom !== undefined) items.push(this.#quantified(atom));
    }
    return items.length === 1 ? items[0]! : { kind: "sequence", items };
  }

  #quantified(atom: Pattern): Pattern {
    let item = atom;
    for (;;) {
      const sign = this.#match(/^[*+?]/)?.[0];
      const braces = sign === undefined ? this.#match(/^\{(\d*)(,?)(\d*)\}(?<!\{,?\})/) : undefined;
      if (sign === undefined && braces === undefined) return item;
      const { min, max } = bounds(sign, braces);
      if (min > max || (max !== Number.POSITIVE_INFINITY && max > MAX_REPEAT))
        this.#fail("a repetition out of range");
      // A + behind braces repeats once more.
      const mode = this.#accept("?")
        ? "lazy"
        : sign !== undefined && this.#accept("+")
          ? "possessive"
          : "greedy";
      item = { kind: "repeat", item, min, max, mode };
    }
  }

  #atom(): Pattern | undefined {
    const character = this.#next();
    switch (character) {
      case "(":
        return this.#group();
      case "[":
        return this.#set(this.#brackets());
      case ".":
        return { kind: "set", source: this.#dotAll ? "[^]" : "[^\\n]" };
      case "^":
        return { kind: "anchor", at: "lineStart" };
      case "$":
        return { kind: "anchor", at: "lineEnd" };
      case "*":
      case "+":
      case "?":
        return this.#fail(`nothing for ${character} to repeat`);
      case "\\":
        return this.#escape();
    }
    return this.#set(literal(character));
  }

  #set(source: string): Pattern {
    return { kind: "set", source: this.#ignoreCase ? `(?i:${source})` : source };
  }

  #escape(): Pattern {
    const anchor = ANCHORS[this.#source[this.#at]!];
    if (anchor !== undefined) {
      this.#at++;
      return { kind: "anchor", at: anchor };
    }
    if (this.#accept("w")) return { kind: "set", source: WORD_OUTSIDE };
    if (this.#accept("W")) return { kind: "set", source: `[^${WORD_OUTSIDE.slice(1)}` };
    return this.#set(this.#escaped());
  }

  /** The character or class that follows a backslash, as an atom within brackets. */
  #escaped(): string {
    const property = this.#match(/^([pP])\{(\^?)([\w -]+)\}/);
    if (property !== undefined)
      return this.#property(property[3]!, (property[1] === "P") !== (property[2] === "^"));
    const hex = this.#match(/^(?:x\{([0-9A-Fa-f]{1,6})\}|x([0-9A-Fa-f]{1,2})|u([0-9A-Fa-f]{4}))/);
    if (hex !== undefined) {
      const code = Number.parseInt(hex[1] ?? hex[2] ?? hex[3]!, 16);
      if (code > 0x10ffff) this.#fail(`no such character as ${hex[0]}`);
      return `\\u{${code.toString(16)}}`;
    }
    const octal = this.#match(/^0[0-7]{0,2}/);
    if (octal !== undefined) return `\\u{${Number.parseInt(octal[0], 8).toString(16)}}`;
    const character = this.#next();
    const known = CLASSES[character] ?? CONTROLS[character];
    if (known !== undefined) return known;
    if (/[A-Za-z0-9]/.test(character)) this.#fail(`\\${character}, which is not supported`);
    return literal(character);
  }

  #property(name: string, negative: boolean): string {
    const posix = POSIX[name.toLowerCase()];
    if (posix !== undefined) return negative ? `[^${posix}]` : posix;
    const letter = negative ? "P" : "p";
    const spelled = name.trim().replace(/[\s-]+/g, "_");
    for (const source of [`\\${letter}{${spelled}}`, `\\${letter}{Script=${spelled}}`]) {
      try {
        new RegExp(source, "v");
        return source;
      } catch {}
    }
    return this.#fail(`the unknown property ${name}`);
  }

  /** A bracket expression, its `[` read: a union, or intersections of unions. */
  #brackets(): string {
    if (++this.#depth > MAX_DEPTH) this.#fail(`brackets nested more than ${MAX_DEPTH} deep`);
    const negative = this.#accept("^");
    const operands: string[] = [];
    let union = "";
    let first = true;
    for (;;) {
      if (this.#accept("&&")) {
        operands.push(union);
        union = "";
      } else if (!first && this.#accept("]")) break;
      else union += this.#element();
      first = false;
    }
    operands.push(union);
    if (operands.includes("")) this.#fail("empty brackets");
    this.#depth--;
    const sets = operands.map((operand) => `[${operand}]`).join("&&");
    return operands.length === 1 ? `[${negative ? "^" : ""}${union}]` : `[${negative ? "^" : ""}${sets}]`;
  }

  /** A character, range or class of a bracket expression. */
  #element(): string {
    const posix = this.#match(/^\[:(\^?)(\w+):\]/);
    if (posix !== undefined) {
      const set = POSIX[posix[2]!] ?? this.#fail(`the unknown class ${posix[2]}`);
      return posix[1] === "^" ? `[^${set}]` : set;
    }
    if (this.#accept("[")) return this.#brackets();
    const low = this.#accept("\\") ? this.#escaped() : literal(this.#next());
    const isRange = this.#source[this.#at] === "-" && this.#source[this.#at + 1] !== "]" && isCharacter(low);
    if (!isRange || this.#source.startsWith("-&&", this.#at) || this.#source.startsWith("-[", this.#at))
      return low;
    this.#at++;
    const high = this.#accept("\\") ? this.#escaped() : literal(this.#next());
    if (!isCharacter(high)) this.#fail("a range that ends in a class");
    return `${low}-${high}`;
  }

  #group(): Pattern | undefined {
    if (this.#accept("?#")) {
      while (this.#next() !== ")");
      return undefined;
    }
    const look = this.#match(/^\?(<?)([=!])/);
    const atomic = look === undefined && this.#accept("?>");
    const flags = look === undefined && !atomic ? this.#match(/^\?([im]*)(?:-([im]*))?([:)])/) : undefined;
    if (flags === undefined && look === undefined && !atomic && this.#accept("?")) {
      if (this.#match(/^<[A-Za-z_]\w*>/) === undefined) this.#fail("a group of a kind that is not supported");
    }
    const before = [this.#ignoreCase, this.#dotAll] as const;
    if (flags !== undefined) {
      const [, on = "", off = "", end] = flags;
      this.#ignoreCase = (this.#ignoreCase || on.includes("i")) && !off.includes("i");
      this.#dotAll = (this.#dotAll || on.includes("m")) && !off.includes("m");
      // Up to the end of the group around it.
      if (end === ")") return this.#choice();
    }
    const item = this.#choice();
    [this.#ignoreCase, this.#dotAll] = before;
    if (!this.#accept(")")) this.#fail("a group without an end");
    if (look !== undefined) return { kind: "look", item, ahead: look[1] === "", negative: look[2] === "!" };
    return atomic ? { kind: "atomic", item } : item;
  }
}

function bounds(sign: string | undefined, braces: RegExpExecArray | undefined): { min: number; max: number } {
  if (sign !== undefined)
    return { min: sign === "+" ? 1 : 0, max: sign === "?" ? 1 : Number.POSITIVE_INFINITY };
  const [, low = "", comma, high = ""] = braces!;
  const min = Number(low);
  return { min, max: high !== "" ? Number(high) : comma === "" ? min : Number.POSITIVE_INFINITY };
}

function isCharacter(atom: string): boolean {
  return !/^(?:\[|\\[pP]\{)/.test(atom);
}

/** A character that stands for itself, also within brackets. */
function literal(character: string): string {
  return /[\w\u0080-\u{10ffff}]/u.test(character) && !/[\u2028\u2029]/.test(character)
    ? character
    : `\\u{${character.codePointAt(0)!.toString(16)}}`;
}
