import { type Automaton, automatonOf, both, either, without } from "./automaton.ts";
import type { Budget } from "./budget.ts";
import { ANY_TEXT, choice, EMPTY, type Regex, sequence } from "./regex.ts";
import { type Branch, parseRegex, RegexSyntaxError } from "./regex-parser.ts";

/** The texts in which `pattern` matches somewhere, as JSON Schema's `pattern` has it. @throws RegexSyntaxError */
export function textsWithMatch(pattern: string, budget: Budget): Automaton {
  return union(parseRegex(pattern, budget), { start: ANY_TEXT, end: ANY_TEXT }, budget);
}

/** The texts that `pattern` matches from beginning to end. @throws RegexSyntaxError */
export function textsMatched(pattern: string, budget: Budget): Automaton {
  return union(parseRegex(pattern, budget), { start: EMPTY, end: EMPTY }, budget);
}

/** What may come before and after a match that is not tied to the text's ends. */
interface Surroundings {
  readonly start: Regex;
  readonly end: Regex;
}

function union(branches: readonly Branch[], around: Surroundings, budget: Budget): Automaton {
  const plain = branches.filter(({ lookaheads }) => lookaheads.length === 0);
  const texts = branches
    .filter(({ lookaheads }) => lookaheads.length > 0)
    .map((branch) => withLookaheads(branch, around, budget));
  if (plain.length > 0)
    texts.push(automatonOf(choice(...plain.map((branch) => surrounded(branch, around))), budget));
  return texts.reduce((a, b) => either(a, b, budget));
}

function surrounded({ atStart, atEnd, body }: Branch, { start, end }: Surroundings): Regex {
  return sequence(atStart ? EMPTY : start, body, atEnd ? EMPTY : end);
}

function withLookaheads(branch: Branch, around: Surroundings, budget: Budget): Automaton {
  const isTied = branch.atStart || around.start === EMPTY;
  if (!isTied) throw new RegexSyntaxError("a lookahead that is not at the start of the text");
  let texts = automatonOf(surrounded(branch, around), budget);
  for (const { negative, branches } of branch.lookaheads) {
    const seen = union(branches, { start: EMPTY, end: ANY_TEXT }, budget);
    texts = negative ? without(texts, seen, budget) : both(texts, seen, budget);
  }
  return texts;
}
