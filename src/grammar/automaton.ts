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

/** The least automaton of the same texts: dead states go, equal ones become one (Moore 1956). */
function reduce(automaton: Automaton, budget: Budget): Automaton {
  const { edges, accepting } = automaton;
  const alive = coaccessible(automaton);
  let classes = accepting.map((accepts, i) => (alive[i] ? Number(accepts) : -1));
  for (let count = 0; ; ) {
    const numbering = new Map<string, number>();
    const next = classes.map((own, i) => {
      if (own < 0) return -1;
      budget.spend(1 + edges[i]!.length, TOO_MANY_STATES);
      const key = `${own} ${signature(edges[i]!, classes)}`;
      const number = numbering.get(key) ?? numbering.size;
      numbering.set(key, number);
      return number;
    });
    classes = next;
    if (numbering.size === count) break;
    count = numbering.size;
  }
  // States in order of appearance from the first, which stays even when nothing matches.
  const numbers = new Map<number, number>();
  const order: number[] = [];
  const visit = (state: number): number => {
    const known = numbers.get(classes[state]!);
    if (known !== undefined) return known;
    numbers.set(classes[state]!, order.length);
    return order.push(state) - 1;
  };
  visit(0);
  const reduced: Edge[][] = [];
  for (let i = 0; i < order.length; i++) {
    const byTarget = new Map<number, CharSet>();
    for (const { set, to } of edges[order[i]!]!) {
      if (!alive[to]) continue;
      const target = visit(to);
      byTarget.set(target, unite(byTarget.get(target) ?? [], set));
    }
    reduced.push(Array.from(byTarget, ([to, set]) => ({ set, to })));
  }
  return { edges: reduced, accepting: order.map((state) => accepting[state]!) };
}

function signature(edges: readonly Edge[], classes: readonly number[]): string {
  const byClass = new Map<number, CharSet>();
  for (const { set, to } of edges) {
    const target = classes[to]!;
    if (target >= 0) byClass.set(target, unite(byClass.get(target) ?? [], set));
  }
  return Array.from(byClass, ([target, set]) => `${target}:${set.join(",")}`)
    .sort()
    .join(";");
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
