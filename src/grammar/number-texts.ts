import { type Automaton, automatonOf, both } from "./automaton.ts";
import type { Budget } from "./budget.ts";
import { charSet } from "./char-set.ts";
import { chars, choice, EMPTY, literal, type Regex, repeat, sequence } from "./regex.ts";

/** An inclusive or exclusive end of a range. */
export interface Bound {
  readonly value: number;
  readonly exclusive: boolean;
}

/**
 * Digits of numbers in a range, together: decimals of so few digits are different doubles, in the same order (their precision
 * is 15.95 digits).
 */
const MAX_DIGITS = 15;
/** Digits after the point of numbers without a range. */
const MAX_FRACTION = 15;

const DIGIT = chars(charSet([48, 57]));
const NONZERO = chars(charSet([49, 57]));
const ZERO = literal("0");
const MINUS = literal("-");

/** A bound has more digits than can be compared exactly. */
export class BoundPrecisionError extends Error {}

/** JSON's spellings of integers of up to 15 digits, or of numbers with a fraction and an exponent, too. */
export function numbers(integers: boolean, budget: Budget): Automaton {
  const whole = choice(ZERO, sequence(NONZERO, repeat(DIGIT, 0, MAX_DIGITS - 1)));
  const fraction = repeat(sequence(literal("."), repeat(DIGIT, 1, MAX_FRACTION)), 0, 1);
  const sign = repeat(chars(charSet([43, 43], [45, 45])), 0, 1);
  const exponent = repeat(sequence(chars(charSet([69, 69], [101, 101])), sign, repeat(DIGIT, 1, 2)), 0, 1);
  // No "-0", which is the integer 0 as well.
  const minus = repeat(MINUS, 0, 1);
  if (integers)
    return automatonOf(choice(ZERO, sequence(minus, NONZERO, repeat(DIGIT, 0, MAX_DIGITS - 1))), budget);
  return automatonOf(sequence(minus, whole, fraction, exponent), budget);
}

/**
 * The decimals within bounds, without an exponent.
 * @throws BoundPrecisionError
 */
export function numbersWithin(
  integers: boolean,
  least: Bound | undefined,
  most: Bound | undefined,
  budget: Budget,
): Automaton {
  // What lies beyond all the decimals that are written is no bound.
  if (least && least.value < -(10 ** MAX_DIGITS) + 1) least = undefined;
  if (most && most.value > 10 ** MAX_DIGITS - 1) most = undefined;
  const bounds = [least, most]
    .filter((bound) => bound !== undefined)
    .map(({ value }) => decimal(Math.abs(value)));
  const longestWhole = Math.max(1, ...bounds.map(({ whole }) => whole.length));
  const longestFraction = Math.max(0, ...bounds.map(({ fraction }) => fraction.length));
  if (longestWhole + longestFraction > MAX_DIGITS) throw new BoundPrecisionError();
  const wholeDigits = integers
    ? MAX_DIGITS
    : Math.max(longestWhole, Math.min(9, MAX_DIGITS - longestFraction));
  const space: Space = { wholeDigits, fractionDigits: integers ? 0 : MAX_DIGITS - wholeDigits };
  const low = least && automatonOf(atLeast(least, space), budget);
  const high = most && automatonOf(atMost(most, space), budget);
  if (low && high) return both(low, high, budget);
  return low ?? high ?? automatonOf(sequence(repeat(MINUS, 0, 1), anyMagnitude(space)), budget);
}

/** The integers that `divisor` divides. */
export function multiplesOf(divisor: number): Automaton {
  // State 1 + r: the digits so far are r modulo the divisor. State 0 begins, and a sign leads to a copy of it.
  const digits = (remainder: number) =>
    Array.from({ length: 10 }, (_, digit) => [(10 * remainder + digit) % divisor, digit] as const);
  const edgesFrom = (remainder: number) =>
    digits(remainder).map(([next, digit]) => ({ set: charSet([48 + digit, 48 + digit]), to: 2 + next }));
  const edges = [
    [{ set: charSet([45, 45]), to: 1 }, ...edgesFrom(0)],
    edgesFrom(0),
    ...Array.from({ length: divisor }, (_, remainder) => edgesFrom(remainder)),
  ];
  return { edges, accepting: edges.map((_, state) => state === 2) };
}

interface Space {
  readonly wholeDigits: number;
  readonly fractionDigits: number;
}

interface Decimal {
  readonly whole: string;
  /** Without zeros at its end. */
  readonly fraction: string;
}

function decimal(value: number): Decimal {
  const spelled = String(value);
  const match = /^(\d+)(?:\.(\d+))?(?:e([+-]\d+))?$/.exec(spelled);
  if (!match) throw new BoundPrecisionError();
  const shift = Number(match[3] ?? 0);
  if (Math.abs(shift) > 2 * MAX_DIGITS) throw new BoundPrecisionError();
  const digits = `${match[1]}${match[2] ?? ""}`;
  const point = match[1]!.length + shift;
  const whole =
    digits
      .slice(0, Math.max(0, point))
      .padEnd(point, "0")
      .replace(/^0+(?=\d)/, "") || "0";
  const fraction = `${"0".repeat(Math.max(0, -point))}${digits.slice(Math.max(0, point))}`.replace(/0+$/, "");
  return { whole, fraction };
}

function atLeast(bound: Bound, space: Space): Regex {
  if (bound.value >= 0) return above(decimal(Math.abs(bound.value)), bound.exclusive, space);
  const magnitude = decimal(Math.abs(bound.value));
  return choice(anyMagnitude(space), sequence(MINUS, below(magnitude, bound.exclusive, space)));
}

function atMost(bound: Bound, space: Space): Regex {
  if (bound.value < 0) return sequence(MINUS, above(decimal(-bound.value), bound.exclusive, space));
  const negative = sequence(MINUS, aboveZero(space));
  return choice(negative, below(decimal(Math.abs(bound.value)), bound.exclusive, space));
}

function aboveZero(space: Space): Regex {
  return above({ whole: "0", fraction: "" }, true, space);
}

function anyMagnitude(space: Space): Regex {
  return above({ whole: "0", fraction: "" }, false, space);
}

/** Unsigned decimals that are greater than `least`, or equal to it unless `exclusive`. */
function above({ whole, fraction }: Decimal, exclusive: boolean, space: Space): Regex {
  const options: Regex[] = [];
  const any = tail(0, space);
  if (whole.length < space.wholeDigits)
    options.push(sequence(NONZERO, repeat(DIGIT, whole.length, space.wholeDigits - 1), any));
  for (let i = 0; i < whole.length; i++)
    options.push(
      sequence(
        literal(whole.slice(0, i)),
        digitAbove(whole[i]!),
        repeat(DIGIT, whole.length - i - 1, whole.length - i - 1),
        any,
      ),
    );
  for (let i = 0; i < Math.min(fraction.length, space.fractionDigits); i++)
    options.push(
      sequence(
        literal(`${whole}.${fraction.slice(0, i)}`),
        digitAbove(fraction[i]!),
        repeat(DIGIT, 0, space.fractionDigits - i - 1),
      ),
    );
  if (fraction.length <= space.fractionDigits) {
    const same = literal(fraction === "" ? whole : `${whole}.${fraction}`);
    const room = space.fractionDigits - fraction.length;
    const point = fraction === "" ? literal(".") : EMPTY;
    if (!exclusive) options.push(same);
    if (room > 0) {
      const zeros = Array.from({ length: room }, (_, i) =>
        sequence(same, point, repeat(ZERO, i, i), NONZERO, repeat(DIGIT, 0, room - i - 1)),
      );
      options.push(...zeros);
      if (!exclusive) options.push(sequence(same, point, repeat(ZERO, 1, room)));
    }
  }
  return choice(...options);
}

/** Unsigned decimals that are less than `most`, or equal to it unless `exclusive`. */
function below({ whole, fraction }: Decimal, exclusive: boolean, space: Space): Regex {
  const options: Regex[] = [];
  const any = tail(0, space);
  // Fewer digits, with no zero in front.
  if (whole.length > 1)
    options.push(sequence(choice(ZERO, sequence(NONZERO, repeat(DIGIT, 0, whole.length - 2))), any));
  for (let i = 0; i < whole.length; i++) {
    const lower = digitBelow(whole[i]!, i === 0 && whole.length > 1);
    options.push(
      sequence(
        literal(whole.slice(0, i)),
        lower,
        repeat(DIGIT, whole.length - i - 1, whole.length - i - 1),
        any,
      ),
    );
  }
  const kept = Math.min(fraction.length, space.fractionDigits);
  for (let i = 0; i < kept; i++) {
    const prefix = `${whole}.${fraction.slice(0, i)}`;
    options.push(
      sequence(
        literal(prefix),
        digitBelow(fraction[i]!, false),
        repeat(DIGIT, 0, space.fractionDigits - i - 1),
      ),
    );
  }
  // A prefix of a fraction that goes on with something other than zeros is less.
  if (fraction !== "") options.push(literal(whole));
  for (let i = 1; i < fraction.length && i <= space.fractionDigits; i++) {
    if (/[1-9]/.test(fraction.slice(i))) options.push(literal(`${whole}.${fraction.slice(0, i)}`));
  }
  if (!exclusive && fraction.length <= space.fractionDigits) {
    const room = space.fractionDigits - fraction.length;
    const same = literal(fraction === "" ? whole : `${whole}.${fraction}`);
    options.push(same);
    if (room > 0) options.push(sequence(same, fraction === "" ? literal(".") : EMPTY, repeat(ZERO, 1, room)));
  }
  return choice(...options);
}

/** Any fraction of up to as many digits as are left. */
function tail(used: number, { fractionDigits }: Space): Regex {
  const room = fractionDigits - used;
  return room <= 0 ? EMPTY : repeat(sequence(literal("."), repeat(DIGIT, 1, room)), 0, 1);
}

function digitAbove(digit: string): Regex {
  return chars(charSet([digit.charCodeAt(0) + 1, 57]));
}

function digitBelow(digit: string, nonzero: boolean): Regex {
  return chars(charSet([nonzero ? 49 : 48, digit.charCodeAt(0) - 1]));
}
