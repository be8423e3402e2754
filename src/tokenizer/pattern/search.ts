import { type Anchor, type Pattern, WORD_SET } from "./syntax.ts";

/** Instructions of a compiled pattern; each names the next by its index. */
type Instruction = Plain | Choice | { readonly kind: "match" };

type Plain =
  | { readonly kind: "set"; readonly set: CharacterSet; next: number }
  /** As many characters of a set as there are, up to `max`, with no way back. */
  | {
      readonly kind: "run";
      readonly set: CharacterSet;
      readonly min: number;
      readonly max: number;
      next: number;
    }
  | { readonly kind: "look"; readonly look: Look; next: number }
  | { readonly kind: "anchor"; readonly at: Anchor; next: number };

/** Tries `first`, then `second`. `row` numbers the choices of a program. */
interface Choice {
  readonly kind: "split";
  readonly row: number;
  first: number;
  second: number;
}

interface Program {
  readonly code: readonly Instruction[];
  readonly start: number;
  readonly splits: number;
}

const MAX_INSTRUCTIONS = 4096;

/**
 * Finds a pattern's matches in time linear in the text, whatever the pattern is: a backtracking search that remembers
 * at which positions a choice has failed, and never tries it there again (Davis, Servant and Lee, "Using Selective
 * Memoization to Defeat Regular Expression Denial of Service", 2021); of a look it remembers both outcomes. Looks
 * behind and atomic groups may hold one character set only. Much slower than JavaScript's own engine.
 */
export class LinearSearch {
  readonly #program: Program;
  readonly #looks: Look[] = [];

  /** @throws SyntaxError for a pattern that cannot be searched for so */
  constructor(pattern: Pattern) {
    this.#program = new Compiler(this.#looks).compile(pattern);
  }

  /** Start and end of each match, in order, one after the other. */
  matches(text: string): number[] {
    const found: number[] = [];
    const failed = new FailedChoices(this.#program.splits, text.length);
    let last = -1;
    for (let start = 0; start <= text.length; ) {
      const end = run(this.#program, text, start, failed);
      const isEmpty = end === start;
      if (end >= 0 && !(isEmpty && last === start)) {
        found.push(start, end);
        last = end;
        // What led to the match did not fail.
        failed.forget(end);
      }
      start = end < 0 || isEmpty ? after(text, start) : end;
    }
    for (const look of this.#looks) look.forget();
    return found;
  }
}

/** The choices that have failed, at their positions. */
class FailedChoices {
  readonly #bits: Uint32Array;
  readonly #splits: number;

  constructor(splits: number, length: number) {
    this.#splits = splits;
    this.#bits = new Uint32Array(Math.ceil((splits * (length + 1)) / 32));
  }

  /** Notes a choice at a position; false if it was noted before. */
  note(row: number, position: number): boolean {
    const index = position * this.#splits + row;
    const word = index >>> 5;
    const bit = 1 << (index & 31);
    if ((this.#bits[word]! & bit) !== 0) return false;
    this.#bits[word]! |= bit;
    return true;
  }

  forget(position: number): void {
    for (let row = 0; row < this.#splits; row++) {
      const index = position * this.#splits + row;
      this.#bits[index >>> 5]! &= ~(1 << (index & 31));
    }
  }
}

function after(text: string, position: number): number {
  const code = text.codePointAt(position);
  return position + (code !== undefined && code > 0xffff ? 2 : 1);
}

/** The end of a match that begins at `start`, or -1. */
function run({ code, start: entry }: Program, text: string, start: number, failed: FailedChoices): number {
  /** Choices to go back to: instruction and position, one after the other. */
  const open: number[] = [];
  let at = entry;
  let position = start;
  for (;;) {
    const instruction = code[at]!;
    if (instruction.kind === "match") return position;
    if (instruction.kind === "split") {
      if (failed.note(instruction.row, position)) {
        open.push(instruction.second, position);
        at = instruction.first;
        continue;
      }
    } else {
      const next = step(instruction, text, position);
      if (next >= 0) {
        position = next;
        at = instruction.next;
        continue;
      }
    }
    if (open.length === 0) return -1;
    position = open.pop()!;
    at = open.pop()!;
  }
}

/** The position after an instruction without a choice, or -1 where it fails. */
function step(instruction: Plain, text: string, position: number): number {
  switch (instruction.kind) {
    case "set": {
      const character = text.codePointAt(position);
      if (character === undefined || !instruction.set.has(character)) return -1;
      return position + (character > 0xffff ? 2 : 1);
    }
    case "run": {
      let end = position;
      for (let count = 0; count < instruction.max; count++) {
        const character = text.codePointAt(end);
        if (character === undefined || !instruction.set.has(character))
          return count < instruction.min ? -1 : end;
        end += character > 0xffff ? 2 : 1;
      }
      return end;
    }
    case "look":
      return instruction.look.holds(text, position) ? position : -1;
    case "anchor":
      return holds(instruction.at, text, position) ? position : -1;
  }
}

/** A look ahead or behind, with what is known of the text that it is in. */
class Look {
  readonly #program: Program;
  readonly #ahead: boolean;
  readonly #negative: boolean;
  #text = "";
  #outcomes = new Uint8Array(0);

  constructor(program: Program, ahead: boolean, negative: boolean) {
    this.#program = program;
    this.#ahead = ahead;
    this.#negative = negative;
  }

  holds(text: string, position: number): boolean {
    if (!this.#ahead) return matchesBefore(this.#program, text, position) !== this.#negative;
    if (text !== this.#text) {
      this.#text = text;
      this.#outcomes = new Uint8Array(this.#program.splits * (text.length + 1));
    }
    return matchesFrom(this.#program, text, position, this.#outcomes) !== this.#negative;
  }

  forget(): void {
    this.#text = "";
    this.#outcomes = new Uint8Array(0);
  }
}

const UNKNOWN = 0;
const MATCHES = 1;
const FAILS = 2;

/** True if a program matches from `position` on. What is found out of its choices is kept in `outcomes`. */
function matchesFrom(
  { code, start, splits }: Program,
  text: string,
  position: number,
  outcomes: Uint8Array,
): boolean {
  /** Choices that are being tried: instruction, position, and 0 or 1 for the branch. */
  const open: number[] = [];
  let at = start;
  let here = position;
  for (;;) {
    let outcome = UNKNOWN;
    const instruction = code[at]!;
    if (instruction.kind === "match") outcome = MATCHES;
    else if (instruction.kind === "split") {
      const index = here * splits + instruction.row;
      outcome = outcomes[index]!;
      if (outcome === UNKNOWN) {
        // Coming by here again without having read anything is of no use.
        outcomes[index] = FAILS;
        open.push(at, here, 0);
        at = instruction.first;
        continue;
      }
    } else {
      const next = step(instruction, text, here);
      if (next < 0) outcome = FAILS;
      else {
        here = next;
        at = instruction.next;
        continue;
      }
    }
    for (;;) {
      const branch = open.pop();
      if (branch === undefined) return outcome === MATCHES;
      here = open.pop()!;
      at = open.pop()!;
      const choice = code[at] as Choice;
      if (outcome === MATCHES) outcomes[here * splits + choice.row] = MATCHES;
      else if (branch === 0) {
        open.push(at, here, 1);
        at = choice.second;
        break;
      }
    }
  }
}

/** True if the one set that a look behind is matches the character before `position`. */
function matchesBefore({ code, start }: Program, text: string, position: number): boolean {
  const instruction = code[start]!;
  if (instruction.kind !== "set" || position === 0) return false;
  const low = text.charCodeAt(position - 1);
  const isPair = low >= 0xdc00 && low < 0xe000 && position > 1;
  return instruction.set.has(isPair ? text.codePointAt(position - 2)! : low);
}

function holds(at: Anchor, text: string, position: number): boolean {
  const rest = text.length - position;
  switch (at) {
    case "textStart":
      return position === 0;
    case "textEnd":
      return rest === 0;
    case "lineStart":
      return position === 0 || text[position - 1] === "\n";
    case "lineEnd":
      return rest === 0 || text[position] === "\n";
    case "lastLineEnd":
      return rest === 0 || (rest === 1 && text[position] === "\n");
    case "word":
    case "noWord": {
      const before = isWord(text.slice(Math.max(0, position - 2), position), true);
      const behind = isWord(text.slice(position, position + 2), false);
      return (before !== behind) === (at === "word");
    }
  }
}

const WORD_AT_START = new RegExp(`^${WORD_SET}`, "v");
const WORD_AT_END = new RegExp(`${WORD_SET}$`, "v");

function isWord(text: string, atEnd: boolean): boolean {
  return (atEnd ? WORD_AT_END : WORD_AT_START).test(text);
}

/** A set of code points, asked of JavaScript's engine once for each. */
class CharacterSet {
  readonly #expression: RegExp;
  /** 0 where it is not known yet, else 1 or 2 for in or out. */
  readonly #known = new Uint8Array(0x110000 >> 4);

  constructor(source: string) {
    this.#expression = new RegExp(`^${source}$`, "v");
  }

  has(code: number): boolean {
    const index = code < this.#known.length ? code : -1;
    const known = index < 0 ? 0 : this.#known[index]!;
    if (known !== 0) return known === 1;
    const found = this.#expression.test(String.fromCodePoint(code));
    if (index >= 0) this.#known[index] = found ? 1 : 2;
    return found;
  }
}

class Compiler {
  readonly #looks: Look[];
  readonly #isLook: boolean;
  readonly #code: Instruction[] = [];
  readonly #sets = new Map<string, CharacterSet>();
  #splits = 0;

  /** @param looks where the looks of the pattern are put */
  constructor(looks: Look[], isLook = false) {
    this.#looks = looks;
    this.#isLook = isLook;
  }

  compile(pattern: Pattern): Program {
    const match = this.#add({ kind: "match" });
    const start = this.#write(pattern, match);
    return { code: this.#code, start, splits: this.#splits };
  }

  #add(instruction: Instruction): number {
    if (this.#code.length >= MAX_INSTRUCTIONS) throw new SyntaxError("the pattern is too large");
    return this.#code.push(instruction) - 1;
  }

  #set(source: string): CharacterSet {
    const set = this.#sets.get(source) ?? new CharacterSet(source);
    this.#sets.set(source, set);
    return set;
  }

  #split(first: number, second: number): number {
    return this.#add({ kind: "split", row: this.#splits++, first, second });
  }

  /** Instructions for `pattern` that go on to `next`, written backwards; the index of the first. */
  #write(pattern: Pattern, next: number): number {
    switch (pattern.kind) {
      case "set":
        return this.#add({ kind: "set", set: this.#set(pattern.source), next });
      case "sequence":
        return pattern.items.reduceRight((following, item) => this.#write(item, following), next);
      case "choice": {
        const starts = pattern.items.map((item) => this.#write(item, next));
        return starts.reduceRight((second, first) => this.#split(first, second));
      }
      case "anchor":
        return this.#add({ kind: "anchor", at: pattern.at, next });
      case "look": {
        const { item, ahead, negative } = pattern;
        if (!ahead && item.kind !== "set")
          throw new SyntaxError("the pattern looks behind at more than one character");
        const look = new Look(new Compiler(this.#looks, true).compile(item), ahead, negative);
        this.#looks.push(look);
        return this.#add({ kind: "look", look, next });
      }
      case "atomic":
        return this.#run(pattern.item, 1, 1, next);
      case "repeat":
        return this.#repeat(pattern, next);
    }
  }

  #run(item: Pattern, min: number, max: number, next: number): number {
    if (item.kind === "repeat" && min === 1 && max === 1)
      return this.#run(item.item, item.min, item.max, next);
    if (item.kind !== "set")
      throw new SyntaxError("the pattern has an atomic group that cannot be run in linear time");
    return this.#add({ kind: "run", set: this.#set(item.source), min, max, next });
  }

  #repeat({ item, min, max, mode }: Pattern & { kind: "repeat" }, next: number): number {
    if (mode === "possessive") return this.#run(item, min, max, next);
    const either = (inner: number, outer: number) =>
      mode === "greedy" ? this.#split(inner, outer) : this.#split(outer, inner);
    let start = next;
    if (max === Number.POSITIVE_INFINITY) {
      if (this.#isLook && canBeEmpty(item))
        throw new SyntaxError("the pattern looks for repetitions of nothing");
      const loop = this.#split(next, next);
      const inner = this.#write(item, loop);
      const [first, second] = mode === "greedy" ? [inner, next] : [next, inner];
      Object.assign(this.#code[loop]!, { first, second });
      start = loop;
    } else for (let i = min; i < max; i++) start = either(this.#write(item, start), next);
    for (let i = 0; i < min; i++) start = this.#write(item, start);
    return start;
  }
}

function canBeEmpty(pattern: Pattern): boolean {
  switch (pattern.kind) {
    case "set":
      return false;
    case "sequence":
      return pattern.items.every(canBeEmpty);
    case "choice":
      return pattern.items.some(canBeEmpty);
    case "repeat":
      return pattern.min === 0 || canBeEmpty(pattern.item);
    case "atomic":
      return canBeEmpty(pattern.item);
    case "anchor":
    case "look":
      return true;
  }
}
