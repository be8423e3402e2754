import type { Budget } from "./budget.ts";
import { ANY_CHAR, type CharSet, charSet, hasChar, intersect, invert, unite } from "./char-set.ts";
import type { Regex } from "./regex.ts";

/** A step of an automaton: any character of `set` leads to state `to`. */
export interface Edge {
  readonly set: CharSet;
  readonly to: number;
}

/**
 * A deterministic finite automaton over characters. The sets of one state's edges are disjoint; a character in none of them
 * matches nothing. State 0 is the first. Made by the functions below, it has no state that cannot reach the end, but the first.
 */
export interface Automaton {
  readonly edges: readonly (readonly Edge[])[];
  readonly accepting: readonly boolean[];
}

const TOO_MANY_STATES = "its patterns or lengths need too many states";

/** The texts of `regex` (Thompson 1968, then subset construction). @throws GrammarTooComplexError */
export function automatonOf(regex: Regex, budget: Budget): Automaton {
  const nfa = new Nfa(budget);
  const start = nfa.state();
  const end = nfa.state();
  nfa.add(regex, start, end);
  return determinise(nfa, start, end, budget);
}

/** The texts that both have. */
export function both(a: Automaton, b: Automaton, budget: Budget): Automaton {
  return product(a, b, (inA, inB) => inA && inB, budget);
}

/** The texts that one of them has. */
export function either(a: Automaton, b: Automaton, budget: Budget): Automaton {
  return product(complete(a), complete(b), (inA, inB) => inA || inB, budget);
}

/** The texts that `a` has and `b` has not. */
export function without(a: Automaton, b: Automaton, budget: Budget): Automaton {
  return product(a, complete(b), (inA, inB) => inA && !inB, budget);
}

/** The texts of at least so many characters of `set`, and of at most so many. */
export function automatonOfLengths(set: CharSet, least: number, most: number): Automaton {
  const isBounded = Number.isFinite(most);
  const last = isBounded ? most : least;
  const edges = Array.from({ length: last + 1 }, (_, count) =>
    count < last ? [{ set, to: count + 1 }] : isBounded ? [] : [{ set, to: count }],
  );
  return { edges, accepting: edges.map((_, count) => count >= least) };
}

/** The texts made of characters of `set` alone. */
export function restrict({ edges, accepting }: Automaton, set: CharSet, budget: Budget): Automaton {
  const kept = edges.map((outgoing) =>
    outgoing
      .map((edge) => ({ set: intersect(edge.set, set), to: edge.to }))
      .filter((edge) => edge.set.length > 0),
  );
  return reduce({ edges: kept, accepting }, budget);
}

export function isEmpty({ edges, accepting }: Automaton): boolean {
  return edges[0]!.length === 0 && !accepting[0];
}

/** True if the automaton has this text. */
export function matches({ edges, accepting }: Automaton, text: string): boolean {
  let state = 0;
  for (const char of text) {
    const code = char.codePointAt(0)!;
    const edge = edges[state]!.find(({ set }) => hasChar(set, code));
    if (!edge) return false;
    state = edge.to;
  }
  return accepting[state]!;
}

/** The automaton of these words alone. */
export function automatonOfWords(words: Iterable<string>): Automaton {
  const children: Map<number, number>[] = [new Map()];
  const accepting = [false];
  for (const word of words) {
    let state = 0;
    for (const char of word) {
      const code = char.codePointAt(0)!;
      let next = children[state]!.get(code);
      if (next === undefined) {
        next = children.push(new Map()) - 1;
        accepting.push(false);
        children[state]!.set(code, next);
      }
      state = next;
    }
    accepting[state] = true;
  }
  const edges = children.map((map) => Array.from(map, ([code, to]) => ({ set: charSet([code, code]), to })));
  return { edges, accepting };
}

class Nfa {
  readonly edges: Edge[][] = [];
  readonly silent: number[][] = [];

  constructor(private readonly budget: Budget) {}

  state(): number {
    this.budget.spend(1, TOO_MANY_STATES);
    this.silent.push([]);
    return this.edges.push([]) - 1;
  }

  /** Every text of `regex` leads from one state to the other. */
  add(regex: Regex, from: number, to: number): void {
    if (regex.kind === "chars") this.edges[from]!.push({ set: regex.set, to });
    else if (regex.kind === "choice") for (const option of regex.options) this.add(option, from, to);
    else if (regex.kind === "sequence") {
      let state = from;
      for (const part of regex.parts) {
        const next = this.state();
        this.add(part, state, next);
        state = next;
      }
      this.silent[state]!.push(to);
    } else {
      const { part, min, max } = regex;
      let state = from;
      const step = () => {
        const next = this.state();
        this.add(part, state, next);
        return next;
      };
      for (let i = 0; i < min; i++) state = step();
      if (max === undefined) {
        // A state of its own: `from` may be entered from elsewhere, and must not be returned to.
        const loop = this.state();
        this.silent[state]!.push(loop);
        const back = this.state();
        this.add(part, loop, back);
        this.silent[back]!.push(loop);
        state = loop;
      } else {
        for (let i = min; i < max; i++) {
          this.silent[state]!.push(to);
          state = step();
        }
      }
      this.silent[state]!.push(to);
    }
  }
}

/** Numbers lists of integers by their contents, in order of appearance. */
class Numbering {
  readonly lists: (readonly number[])[] = [];
  readonly #numbers = new Map<string, number>();

  of(list: readonly number[]): number {
    const key = list.join(",");
    const known = this.#numbers.get(key);
    if (known !== undefined) return known;
    const number = this.lists.push(list) - 1;
    this.#numbers.set(key, number);
    return number;
  }
}

function determinise(nfa: Nfa, start: number, end: number, budget: Budget): Automaton {
  const closure = (states: Iterable<number>): number[] => {
    const seen = new Set<number>(states);
    for (const state of seen) for (const next of nfa.silent[state]!) seen.add(next);
    budget.spend(seen.size, TOO_MANY_STATES);
    return [...seen].sort((a, b) => a - b);
  };
  const subsets = new Numbering();
  subsets.of(closure([start]));
  const edges: Edge[][] = [];
  const accepting: boolean[] = [];
  for (let i = 0; i < subsets.lists.length; i++) {
    const subset = subsets.lists[i]!;
    accepting.push(subset.includes(end));
    const outgoing = subset.flatMap((state) => nfa.edges[state]!);
    edges.push(
      partition(outgoing, budget).map(({ set, targets }) => ({ set, to: subsets.of(closure(targets)) })),
    );
  }
  return reduce({ edges, accepting }, budget);
}

/** Divides the characters of overlapping edges into sets that lead to the same targets. */
function partition(edges: readonly Edge[], budget: Budget): { set: CharSet; targets: number[] }[] {
  const bounds = new Set<number>();
  for (const { set } of edges)
    for (let i = 0; i < set.length; i += 2) bounds.add(set[i]!).add(set[i + 1]! + 1);
  const sorted = [...bounds].sort((a, b) => a - b);
  const groups = new Map<string, { ranges: [number, number][]; targets: number[] }>();
  for (let i = 0; i + 1 < sorted.length; i++) {
    const first = sorted[i]!;
    budget.spend(edges.length, TOO_MANY_STATES);
    const targets = [...new Set(edges.filter(({ set }) => hasChar(set, first)).map(({ to }) => to))];
    if (targets.length === 0) continue;
    const key = targets.sort((a, b) => a - b).join(",");
    const group = groups.get(key) ?? { ranges: [], targets };
    group.ranges.push([first, sorted[i + 1]! - 1]);
    groups.set(key, group);
  }
  return Array.from(groups.values(), ({ ranges, targets }) => ({ set: charSet(...ranges), targets }));
}

function product(
  a: Automaton,
  b: Automaton,
  accepts: (inA: boolean, inB: boolean) => boolean,
  budget: Budget,
): Automaton {
  const pairs = new Numbering();
  pairs.of([0, 0]);
  const edges: Edge[][] = [];
  const accepting: boolean[] = [];
  for (let i = 0; i < pairs.lists.length; i++) {
    const [p, q] = pairs.lists[i] as [number, number];
    accepting.push(accepts(a.accepting[p]!, b.accepting[q]!));
    const outgoing: Edge[] = [];
    for (const left of a.edges[p]!) {
      for (const right of b.edges[q]!) {
        budget.spend(1 + left.set.length + right.set.length, TOO_MANY_STATES);
        const set = intersect(left.set, right.set);
        if (set.length > 0) outgoing.push({ set, to: pairs.of([left.to, right.to]) });
      }
    }
    edges.push(outgoing);
  }
  return reduce({ edges, accepting }, budget);
}

/** The same texts, with an edge for every character in every state. */
function complete({ edges, accepting }: Automaton): Automaton {
  const sink = edges.length;
  const filled = edges.map((outgoing) => {
    const rest = invert(unite(...outgoing.map(({ set }) => set)));
    return rest.length === 0 ? outgoing : [...outgoing, { set: rest, to: sink }];
  });
  return { edges: [...filled, [{ set: ANY_CHAR, to: sink }]], accepting: [...accepting, false] };
}

/**
 * An automaton of the same texts with fewer states: dead ones go, equal ones become one. Those that lead to a circle of several states
 * are refined round by round (Moore 1956); all others, such as counts, are told apart in one go, the last ones first.
 */
function reduce(automaton: Automaton, budget: Budget): Automaton {
  const { edges, accepting } = automaton;
  const order = targetsFirst(edges);
  const reached = new Set(order);
  const alive = coaccessible(automaton).map((each, state) => each && reached.has(state));
  const cost = edges.map((outgoing) => 2 + outgoing.reduce((sum, { set }) => sum + 2 + set.length / 4, 0));
  const known = equalStates(automaton, order, alive, (state) => budget.spend(cost[state]!, TOO_MANY_STATES));
  const numKnown = 1 + Math.max(-1, ...known);
  const isOpen = (state: number) => alive[state]! && known[state]! < 0;
  let classes = known.map((own, i) => (isOpen(i) ? numKnown + Number(accepting[i]) : own));
  let count = 0;
  let isRefined = edges.some((_, i) => isOpen(i));
  while (isRefined) {
    const numbering = new Map<string, number>();
    const next = classes.map((own, i) => {
      if (!isOpen(i)) return own;
      budget.spend(cost[i]!, TOO_MANY_STATES);
      const key = `${own} ${signature(edges[i]!, ({ to }) => classes[to]!)}`;
      const number = numbering.get(key) ?? numbering.size;
      numbering.set(key, number);
      return numKnown + number;
    });
    classes = next;
    isRefined = numbering.size !== count;
    count = numbering.size;
  }
  return merged(automaton, classes, alive);
}

/** The automaton whose states are the classes of another's live states: those in one match the same texts. */
function merged(
  { edges, accepting }: Automaton,
  classes: readonly number[],
  alive: readonly boolean[],
): Automaton {
  // States in order of appearance from the first, which stays even when nothing matches.
  const numbers = new Map<number, number>();
  const kept: number[] = [];
  const visit = (state: number): number => {
    const known = numbers.get(classes[state]!);
    if (known !== undefined) return known;
    numbers.set(classes[state]!, kept.length);
    return kept.push(state) - 1;
  };
  visit(0);
  const reduced: Edge[][] = [];
  for (let i = 0; i < kept.length; i++) {
    const byTarget = new Map<number, CharSet>();
    for (const { set, to } of edges[kept[i]!]!) {
      if (!alive[to]) continue;
      const target = visit(to);
      byTarget.set(target, unite(byTarget.get(target) ?? [], set));
    }
    reduced.push(Array.from(byTarget, ([to, set]) => ({ set, to })));
  }
  return { edges: reduced, accepting: kept.map((state) => accepting[state]!) };
}

/**
 * Numbers from 0 of the live states that lead to no circle but their own: equal ones have the same. −1: any other state.
 * @param order the states that can be reached, each after those that it leads to, but for circles
 */
function equalStates(
  { edges, accepting }: Automaton,
  order: readonly number[],
  alive: readonly boolean[],
  visit: (state: number) => void,
): number[] {
  const classes = edges.map(() => -1);
  /** By number: what its states match, and whether they have a circle of their own. */
  const known: { readonly key: string; readonly isCircle: boolean }[] = [];
  const numbers = new Map<string, number>();
  for (const state of order) {
    const outgoing = edges[state]!.filter(({ to }) => alive[to]);
    if (!alive[state] || !outgoing.every(({ to }) => to === state || classes[to]! >= 0)) continue;
    visit(state);
    const key = (own: number) => {
      const goesOn = ({ to }: Edge) =>
        to === state || classes[to] === own ? Number.MAX_VALUE : classes[to]!;
      return `${accepting[state]} ${signature(outgoing, goesOn)}`;
    };
    // A state that goes on as one with a circle does, if it leads there where that leads to itself, is that one.
    const same = outgoing.find(
      ({ to }) =>
        to !== state && known[classes[to]!]!.isCircle && key(classes[to]!) === known[classes[to]!]!.key,
    );
    const own = key(-2);
    classes[state] = same ? classes[same.to]! : (numbers.get(own) ?? known.length);
    if (classes[state] < known.length) continue;
    numbers.set(own, known.length);
    known.push({ key: own, isCircle: outgoing.some(({ to }) => to === state) });
  }
  return classes;
}

/** The texts of a state's edges by the class that they lead to, but for dead ends: equal for equal states. @param goesOn the class of an edge's target; negative: dead */
function signature(edges: readonly Edge[], goesOn: (edge: Edge) => number): string {
  const byClass = new Map<number, CharSet>();
  for (const edge of edges) {
    const target = goesOn(edge);
    if (target >= 0) byClass.set(target, unite(byClass.get(target) ?? [], edge.set));
  }
  return Array.from(byClass, ([target, set]) => `${target}:${set.join(",")}`)
    .sort()
    .join(";");
}

/** The states that the first leads to, each after those that it leads to, but for circles. */
export function targetsFirst(edges: Automaton["edges"]): readonly number[] {
  const order: number[] = [];
  const seen = new Set([0]);
  const open = [{ state: 0, next: 0 }];
  for (let top = open.at(-1); top; top = open.at(-1)) {
    const edge = edges[top.state]![top.next++];
    if (!edge) {
      order.push(top.state);
      open.pop();
    } else if (!seen.has(edge.to)) {
      seen.add(edge.to);
      open.push({ state: edge.to, next: 0 });
    }
  }
  return order;
}

/** Whether each state can reach an accepting one. */
function coaccessible({ edges, accepting }: Automaton): boolean[] {
  const sources: number[][] = edges.map(() => []);
  for (const [from, outgoing] of edges.entries()) for (const { to } of outgoing) sources[to]!.push(from);
  const alive = [...accepting];
  const queue = [...accepting.keys()].filter((state) => accepting[state]);
  for (const state of queue) {
    for (const source of sources[state]!) {
      if (alive[source]) continue;
      alive[source] = true;
      queue.push(source);
    }
  }
  return alive;
}
