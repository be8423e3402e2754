import { type Automaton, targetsFirst } from "./automaton.ts";
import type { Budget } from "./budget.ts";
import { type CharSet, charSet, charsOf, intersect, invert, rangesOf, unite } from "./char-set.ts";
import { markerBytes } from "./marker-bytes.ts";
import { utf8Ranges } from "./utf8-ranges.ts";

/** A part of a grammar's rule. A choice of nothing matches nothing, a sequence of nothing the empty text. */
export type Expression =
  | { readonly kind: "text"; readonly text: string }
  /** One of these ASCII characters. */
  | { readonly kind: "chars"; readonly set: CharSet }
  /** One byte of the UTF-8 of a character beyond ASCII. */
  | { readonly kind: "byte"; readonly first: number; readonly last: number }
  | { readonly kind: "rule"; readonly rule: Rule }
  | { readonly kind: "sequence"; readonly parts: readonly Expression[] }
  | { readonly kind: "choice"; readonly options: readonly Expression[] };

/** A rule of a grammar. Its body may be set later than it is referred to. */
export class Rule {
  body: Expression = NEVER;
  /**
   * Characters one of which follows the rule's text, if anything does: xgrammar leaves out ahead of time what it would otherwise
   * have to try each time, such as all tokens that begin with a space where white space may come. Default: any.
   */
  ahead: CharSet | undefined;

  /** @param source rules in EBNF, this one among them, that are written in place of the body. */
  constructor(
    readonly name: string,
    readonly source?: string,
  ) {}
}

export const NEVER: Expression = { kind: "choice", options: [] };
export const NOTHING: Expression = { kind: "sequence", parts: [] };

export function text(content: string): Expression {
  return { kind: "text", text: content };
}

/**
 * One character of `set`: a choice of these. Characters beyond ASCII are spelled byte by byte: xgrammar 0.1.27 takes the members
 * of a class for bytes, and a negated class for more than UTF-8.
 */
export function oneOf(set: CharSet): Expression[] {
  const ascii = intersect(set, ASCII);
  const rest = intersect(set, BEYOND_ASCII);
  const spelled = utf8Ranges(rest).map((bytes) =>
    inOrder(...bytes.map(([first, last]): Expression => ({ kind: "byte", first, last }))),
  );
  return ascii.length > 0 ? [oneAscii(ascii), ...spelled] : spelled;
}

/** One of these ASCII characters. */
export function oneAscii(set: CharSet): Expression {
  return { kind: "chars", set };
}

/** The token of this id as such: a marker. */
export function marker(id: number): Expression {
  const [lead, ...digits] = markerBytes(id);
  return inOrder({ kind: "byte", first: lead!, last: lead! }, text(String.fromCharCode(...digits)));
}

/** Rules that are written already, in EBNF: the one that `root` names is what they match. */
export function written(root: string, source: string): Expression {
  const rule = new Rule(root, source);
  rule.body = NOTHING;
  return refer(rule);
}

export function refer(rule: Rule): Expression {
  return { kind: "rule", rule };
}

export function inOrder(...parts: readonly Expression[]): Expression {
  return parts.length === 1 ? parts[0]! : { kind: "sequence", parts };
}

export function anyOf(...options: readonly Expression[]): Expression {
  return options.length === 1 ? options[0]! : { kind: "choice", options };
}

/** Characters that have an escape of one letter in JSON, and that letter. */
const SHORT_ESCAPES: readonly (readonly [char: string, letter: string])[] = [
  ['"', '"'],
  ["\\", "\\"],
  ["\b", "b"],
  ["\f", "f"],
  ["\n", "n"],
  ["\r", "r"],
  ["\t", "t"],
];
const ASCII = charSet([0, 127]);
const BEYOND_ASCII = invert(ASCII);
const CONTROLS = charSet([0, 31]);
const UNESCAPED = invert(unite(CONTROLS, charsOf('"\\')));

/** The characters that patterned JSON strings are written with: all but the control characters without a short escape. */
export const WRITABLE: CharSet = unite(UNESCAPED, ...SHORT_ESCAPES.map(([char]) => charsOf(char)));

/** One character of `set` in a JSON string, spelled in one way only: a choice of these. */
export function jsonChar(set: CharSet): Expression[] {
  const plain = intersect(set, UNESCAPED);
  const escaped = SHORT_ESCAPES.filter(([char]) => intersect(set, charsOf(char)).length > 0);
  const letters = charsOf(escaped.map(([, letter]) => letter).join(""));
  return [...oneOf(plain), ...(letters.length > 0 ? [inOrder(text("\\"), oneAscii(letters))] : [])];
}

/** The cost of a rule: xgrammar computes a mask of the vocabulary for each of its states, so that more than ten thousand take it minutes. */
const RULE_STEPS = 100;

/** The way in which an automaton's texts are written. */
export interface AutomatonText {
  readonly spell?: (set: CharSet) => Expression[];
  readonly end?: Expression;
  readonly ahead?: CharSet | undefined;
}

const AS_IT_IS: AutomatonText = {};

/** Collects the rules of a grammar and writes them in the EBNF that xgrammar reads. */
export class GrammarBuilder {
  #numRules = 0;
  readonly #shared = new Map<string, Rule>();
  /** The rules of automata's states by what they match, for each way of writing. */
  readonly #states = new Map<AutomatonText, Map<string, Rule>>();

  constructor(readonly budget: Budget) {}

  rule(hint: string): Rule {
    this.budget.spend(RULE_STEPS, "it needs too many rules");
    return new Rule(`${hint}_${this.#numRules++}`);
  }

  /** A rule that is made once for each key. */
  shared(key: string, make: () => Expression, ahead?: CharSet): Expression {
    let rule = this.#shared.get(key);
    if (!rule) {
      rule = this.rule(key);
      rule.ahead = ahead;
      this.#shared.set(key, rule);
      rule.body = make();
    }
    return refer(rule);
  }

  /**
   * The texts of an automaton, right-linear: a rule for each state, so that what matches is never ambiguous and costs the same
   * at every character. States of several automata that go on in the same way are one rule, unless they lie on a circle: the ends of
   * strings of at most 200 characters are those of strings of at most 100.
   */
  automaton(automaton: Automaton, hint: string, written: AutomatonText = AS_IT_IS): Expression {
    const { spell = oneOf, end = NOTHING, ahead } = written;
    const known = this.#states.get(written) ?? new Map<string, Rule>();
    this.#states.set(written, known);
    const { edges, accepting } = automaton;
    const rules = new Map<number, Rule>();
    /** States whose rules other automata may have, and those that are new. */
    const shared = new Set<number>();
    const made: number[] = [];
    for (const state of targetsFirst(edges)) {
      const outgoing = edges[state]!;
      let key: string | undefined;
      if (outgoing.every(({ to }) => to === state || shared.has(to))) {
        const steps = outgoing.map(({ set, to }) => `${set}>${to === state ? "" : rules.get(to)!.name}`);
        key = `${accepting[state]} ${steps.sort().join(" ")}`;
        shared.add(state);
      }
      const same = key === undefined ? undefined : known.get(key);
      if (!same) made.push(state);
      const rule = same ?? this.rule(hint);
      rules.set(state, rule);
      if (key !== undefined) known.set(key, rule);
    }
    for (const state of made) {
      const rule = rules.get(state)!;
      const steps = edges[state]!.flatMap(({ set, to }) =>
        spell(set).map((char) => inOrder(char, refer(rules.get(to)!))),
      );
      rule.ahead = ahead;
      rule.body = anyOf(...(accepting[state] ? [end] : []), ...steps);
    }
    return refer(rules.get(0)!);
  }

  /** The grammar of `root`; undefined when it matches no finite text. */
  write(root: Expression): string | undefined {
    const start = new Rule("root");
    start.body = root;
    const productive = productiveRules(start);
    if (!productive.has(start)) return undefined;
    const lines: string[] = [];
    const queue = new Set([start]);
    for (const rule of queue) {
      const body = rule.source ?? print(rule.body, productive, queue, false);
      const ahead = rule.ahead && ` (=${printChars(rule.ahead)})`;
      const line = rule.source ?? `${rule.name} ::= ${ahead ? `(${body})${ahead}` : body}`;
      this.budget.spend(line.length, "its grammar is too long");
      lines.push(line);
    }
    return `${lines.join("\n")}\n`;
  }
}

/** True if the expression matches some finite text. */
export function isPossible(expression: Expression): boolean {
  const rule = new Rule("");
  rule.body = expression;
  return productiveRules(rule).has(rule);
}

/** The rules that match some finite text. */
function productiveRules(start: Rule): ReadonlySet<Rule> {
  const users = new Map<Rule, Set<Rule>>([[start, new Set()]]);
  for (const [rule] of users) {
    for (const used of rulesIn(rule.body)) {
      const known = users.get(used);
      if (known) known.add(rule);
      else users.set(used, new Set([rule]));
    }
  }
  const productive = new Set<Rule>();
  const queue = new Set(users.keys());
  for (const rule of queue) {
    queue.delete(rule);
    if (productive.has(rule) || !isProductive(rule.body, productive)) continue;
    productive.add(rule);
    for (const user of users.get(rule)!) if (!productive.has(user)) queue.add(user);
  }
  return productive;
}

function* rulesIn(expression: Expression): Generator<Rule> {
  if (expression.kind === "rule") yield expression.rule;
  else if (expression.kind === "sequence") for (const part of expression.parts) yield* rulesIn(part);
  else if (expression.kind === "choice") for (const option of expression.options) yield* rulesIn(option);
}

function isProductive(expression: Expression, productive: ReadonlySet<Rule>): boolean {
  if (expression.kind === "text" || expression.kind === "byte" || expression.kind === "chars") return true;
  if (expression.kind === "rule") return productive.has(expression.rule);
  if (expression.kind === "sequence") return expression.parts.every((part) => isProductive(part, productive));
  return expression.options.some((option) => isProductive(option, productive));
}

/** @param used is told the rules that are referred to */
function print(
  expression: Expression,
  productive: ReadonlySet<Rule>,
  used: Set<Rule>,
  nested: boolean,
): string {
  if (expression.kind === "text") return quote(expression.text);
  if (expression.kind === "chars") return printChars(expression.set);
  // A class of one member stands for the character, and one of the same member twice for the byte.
  if (expression.kind === "byte") {
    const [first, last] = [escapeChar(expression.first), escapeChar(expression.last)];
    return first === last ? `[${first}${first}]` : `[${first}-${last}]`;
  }
  if (expression.kind === "rule") {
    used.add(expression.rule);
    return expression.rule.name;
  }
  if (expression.kind === "sequence") {
    const parts = expression.parts.map((part) => print(part, productive, used, true));
    return parts.length === 0 ? '""' : parts.join(" ");
  }
  const options = expression.options.filter((option) => isProductive(option, productive));
  const printed = [...new Set(options.map((option) => print(option, productive, used, false)))];
  return nested && printed.length > 1 ? `(${printed.join(" | ")})` : printed.join(" | ");
}

/** A literal of the grammar's EBNF. */
export function quote(content: string): string {
  const chars = Array.from(content, (char) =>
    char === '"' || char === "\\"
      ? `\\${char}`
      : /^[ -~]$/.test(char)
        ? char
        : escapeChar(char.codePointAt(0)!),
  );
  return `"${chars.join("")}"`;
}

function printChars(set: CharSet): string {
  const spelled = (code: number) => {
    const char = String.fromCodePoint(code);
    return /^[A-Za-z0-9 ]$/.test(char) ? char : escapeChar(code);
  };
  const ranges = rangesOf(set).map(([first, last]) =>
    first === last ? spelled(first) : `${spelled(first)}-${spelled(last)}`,
  );
  return `[${ranges.join("")}]`;
}

function escapeChar(code: number): string {
  return code > 0xffff
    ? `\\U${code.toString(16).padStart(8, "0")}`
    : `\\u${code.toString(16).padStart(4, "0")}`;
}
