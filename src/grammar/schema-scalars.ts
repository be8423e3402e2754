import { type Automaton, automatonOfLengths, both, isEmpty, matches, restrict } from "./automaton.ts";
import type { Budget } from "./budget.ts";
import { ENCODINGS, FORMATS } from "./formats.ts";
import { WRITABLE } from "./grammar-text.ts";
import { type Bound, BoundPrecisionError, multiplesOf, numbers, numbersWithin } from "./number-texts.ts";
import { textsMatched, textsWithMatch } from "./pattern.ts";
import { RegexSyntaxError } from "./regex-parser.ts";
import type { SchemaDocument, SchemaNode } from "./schema-document.ts";
import type { Form } from "./schema-forms.ts";

/** Greatest `multipleOf`: the automaton has a state for each remainder. */
const MAX_DIVISOR = 1000;
/**
 * Greatest `maxLength` and `minLength`. Each of the lengths is a state whose mask of the whole vocabulary the grammar stage
 * computes ahead, in some 20 ms.
 */
const MAX_LENGTH = 256;

/** The keywords that say what is in a string. */
const TEXT_KEYWORDS = ["minLength", "maxLength", "pattern", "format", "contentEncoding"];

/** The texts of a form's numbers and strings. */
export class SchemaScalars {
  readonly #patterns = new Map<string, Automaton>();
  /** By the keywords that ask for them. */
  readonly #strings = new Map<string, Automaton | undefined>();
  /** Of formats and encodings, by regular expression. */
  readonly #known = new Map<string, Automaton>();

  constructor(
    private readonly document: SchemaDocument,
    private readonly budget: Budget,
  ) {}

  /** The spellings of a form's numbers, of which `values` are a choice of their own. */
  numbers({ schemas, integers }: Form): Automaton {
    let least: Bound | undefined;
    let most: Bound | undefined;
    let blamed: { readonly keyword: string; readonly node: SchemaNode } | undefined;
    const divisors: number[] = [];
    for (const node of schemas) {
      for (const keyword of ["minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"] as const) {
        const value = this.#number(node, keyword);
        if (value === undefined) continue;
        blamed = { keyword, node };
        const bound = { value, exclusive: keyword.startsWith("exclusive") };
        if (keyword.endsWith("inimum")) least = !least || isAbove(bound, least) ? bound : least;
        else most = !most || isBelow(bound, most) ? bound : most;
      }
      const divisor = this.#number(node, "multipleOf");
      if (divisor === undefined) continue;
      if (!Number.isInteger(divisor) || divisor < 1 || divisor > MAX_DIVISOR)
        throw this.document.error("multipleOf", node.path, `it must be an integer from 1 to ${MAX_DIVISOR}`);
      divisors.push(divisor);
    }
    const wholeOnly = integers || divisors.length > 0;
    let texts = numbers(wholeOnly, this.budget);
    if (blamed) {
      try {
        texts = numbersWithin(wholeOnly, least, most, this.budget);
      } catch (error) {
        if (!(error instanceof BoundPrecisionError)) throw error;
        const reason = "the bounds of a number may have 15 digits together";
        throw this.document.error(blamed.keyword, blamed.node.path, reason);
      }
    }
    for (const divisor of divisors) texts = both(texts, multiplesOf(divisor), this.budget);
    return texts;
  }

  /** The contents of a form's strings, made once for each way to ask for them; undefined: any text. */
  strings({ schemas }: Form): Automaton | undefined {
    const asked = schemas.flatMap(({ json }) =>
      TEXT_KEYWORDS.flatMap((name) => (name in json ? [name, json[name]] : [])),
    );
    if (asked.length === 0) return undefined;
    const key = JSON.stringify(asked);
    if (!this.#strings.has(key)) this.#strings.set(key, this.#makeStrings(schemas));
    return this.#strings.get(key);
  }

  #makeStrings(schemas: readonly SchemaNode[]): Automaton | undefined {
    const parts: Automaton[] = [];
    let [least, most] = [0, Number.POSITIVE_INFINITY];
    for (const node of schemas) {
      least = Math.max(least, this.count(node, "minLength") ?? 0);
      most = Math.min(most, this.count(node, "maxLength") ?? Number.POSITIVE_INFINITY);
      if ("pattern" in node.json) parts.push(this.pattern(node, "pattern", node.json["pattern"]));
      if ("format" in node.json) parts.push(this.#named(node, "format", FORMATS));
      if ("contentEncoding" in node.json) parts.push(this.#named(node, "contentEncoding", ENCODINGS));
    }
    if (least > 0 || most < Number.POSITIVE_INFINITY) {
      const keyword = most < Number.POSITIVE_INFINITY ? "maxLength" : "minLength";
      const node = schemas.find(({ json }) => keyword in json)!;
      const longest = Math.max(least, Number.isFinite(most) ? most : 0);
      if (longest > MAX_LENGTH)
        throw this.document.error(keyword, node.path, `it may be at most ${MAX_LENGTH}`);
      const lengths = most < least ? NO_TEXT : automatonOfLengths(WRITABLE, least, most);
      this.budget.spend(lengths.edges.length, "its strings are too long");
      if (parts.length === 0) return lengths;
      parts.push(lengths);
    }
    if (parts.length === 0) return undefined;
    return restrict(
      parts.reduce((a, b) => both(a, b, this.budget)),
      WRITABLE,
      this.budget,
    );
  }

  /** The form's `values` that its other keywords allow. */
  values(form: Form): Form["values"] {
    if (form.values === undefined) return undefined;
    const numberTexts = form.types.has("number") ? this.#unspelled(form) : undefined;
    const stringTexts = form.types.has("string") ? this.#allStrings(form) : undefined;
    return form.values.filter((value) => {
      if (typeof value === "number") return numberTexts!(value);
      return typeof value !== "string" || stringTexts!(value);
    });
  }

  /** The texts with a match of a pattern, made once. */
  pattern(node: SchemaNode, keyword: string, pattern: unknown): Automaton {
    if (typeof pattern !== "string") throw this.document.error(keyword, node.path, "it must be a text");
    const known = this.#patterns.get(pattern);
    if (known) return known;
    let texts: Automaton;
    try {
      texts = textsWithMatch(pattern, this.budget);
    } catch (error) {
      if (!(error instanceof RegexSyntaxError)) throw error;
      throw this.document.error(keyword, node.path, `${JSON.stringify(pattern)}: ${error.message}`);
    }
    if (isEmpty(texts)) throw this.document.error(keyword, node.path, "no text matches the pattern");
    this.#patterns.set(pattern, texts);
    return texts;
  }

  /** A count of a keyword; undefined without it. */
  count(node: SchemaNode, keyword: string): number | undefined {
    const value = this.#number(node, keyword);
    if (value === undefined) return undefined;
    if (!Number.isSafeInteger(value) || value < 0)
      throw this.document.error(keyword, node.path, "it must be an integer of at least 0");
    return value;
  }

  #number(node: SchemaNode, keyword: string): number | undefined {
    const value = node.json[keyword];
    if (value === undefined) return undefined;
    if (typeof value === "number" && Number.isFinite(value)) return value;
    throw this.document.error(keyword, node.path, "it must be a number");
  }

  #named(node: SchemaNode, keyword: string, known: Readonly<Record<string, string>>): Automaton {
    const name = node.json[keyword];
    const regex = typeof name === "string" && Object.hasOwn(known, name) ? known[name]! : undefined;
    if (regex !== undefined) {
      const texts = this.#known.get(regex) ?? textsMatched(regex, this.budget);
      this.#known.set(regex, texts);
      return texts;
    }
    const reason = `${JSON.stringify(name)} is not one of ${Object.keys(known).join(", ")}`;
    throw this.document.error(keyword, node.path, reason);
  }

  /** Whether a number is within bounds and divisible, however it is spelled. */
  #unspelled(form: Form): (value: number) => boolean {
    this.numbers(form);
    return (value) =>
      form.schemas.every(({ json }) => {
        const { minimum, maximum, exclusiveMinimum, exclusiveMaximum, multipleOf } = json as Record<
          string,
          number
        >;
        return !(
          value < (minimum ?? -Infinity) ||
          value > (maximum ?? Infinity) ||
          value <= (exclusiveMinimum ?? -Infinity) ||
          value >= (exclusiveMaximum ?? Infinity) ||
          (multipleOf !== undefined && value % multipleOf !== 0)
        );
      });
  }

  /** Strings that keywords allow, those that patterns are not written with included. */
  #allStrings(form: Form): (value: string) => boolean {
    const texts = this.strings(form);
    return (value) => texts === undefined || matches(texts, value);
  }
}

const NO_TEXT: Automaton = { edges: [[]], accepting: [false] };

function isAbove(a: Bound, b: Bound): boolean {
  return a.value > b.value || (a.value === b.value && a.exclusive);
}

function isBelow(a: Bound, b: Bound): boolean {
  return a.value < b.value || (a.value === b.value && a.exclusive);
}
