import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { GrammarTooComplexError } from "../../../src/base/errors.ts";
import { matches } from "../../../src/grammar/automaton.ts";
import { Budget } from "../../../src/grammar/budget.ts";
import { textsMatched, textsWithMatch } from "../../../src/grammar/pattern.ts";
import { parseRegex, RegexSyntaxError } from "../../../src/grammar/regex-parser.ts";
import { Dice } from "./walker.ts";

setDefaultTimeout(300_000);

const budget = () => new Budget("pattern", 3_000_000);

const PATTERNS = [
  ...["", "a", "^a", "a$", "^$", "ab|^b$", "(a|b)*", "(?:a+)+b", "[ab]{2,3}", "a{2}", "a{1,}?", "^(a|^b)$"],
  ...["[^a]", "[^a-y\\n]", ".", "^.*$", "\\d\\D\\w\\W", "\\s", "\\S+", "[\\s\\S]", "[\\]\\-x]", "\\.", "\\/"],
  ...[
    "\\u0061",
    "\\x62",
    "\\u{1F600}",
    "\\ud83d\\ude00",
    "[é-ï]",
    "\\p{Lu}",
    "\\P{L}",
    "\\t|\\n",
    "\\cJ",
    "[\\b]",
  ],
  ...[
    "^(?!a)b?",
    "^(?=.*b)a",
    "^(?!.*\\.\\.)[a.]+$",
    "(?<name>a)b",
    "^(?:(?:a|b)x)$",
    "^(?!a$|b$)\\w$",
    "a|",
    "\\0",
  ],
];

describe("automata have the texts that RegExp matches", () => {
  test.each(PATTERNS)("%p", (pattern) => {
    const automaton = textsWithMatch(pattern, budget());
    const whole = textsMatched(pattern, budget());
    const [search, full] = [new RegExp(pattern, "u"), new RegExp(`^(?:${pattern})$`, "u")];
    const dice = new Dice(pattern.length);
    const alphabet = [...'aabbxyz.. -]"\\/\n\t\u2028éïÀ😀1_\0\b'];
    for (let i = 0; i < 1500; i++) {
      const text = Array.from({ length: dice.below(7) }, () => dice.of(alphabet)).join("");
      expect([text, matches(automaton, text)]).toEqual([text, search.test(text)]);
      expect([text, matches(whole, text)]).toEqual([text, full.test(text)]);
    }
  });
});

test("Python's spelling of named groups, and a brace that is no quantifier", () => {
  expect(matches(textsMatched("(?P<a>x)", budget()), "x")).toBe(true);
  expect(matches(textsMatched("{a}", budget()), "{a}")).toBe(true);
});

test.each([
  ...[
    "(",
    ")",
    "[",
    "a**",
    "*",
    "\\",
    "(?<=a)b",
    "(?<!a)b",
    "(?i)a",
    "\\1",
    "\\k<a>",
    "\\b",
    "a^b",
    "a$b",
    "\\q",
  ],
  ...[
    "x(?=a)",
    "[b-a]",
    "[\\d-z]",
    "a{3,2}",
    "a{1001}",
    "\\p{Nothing}",
    "\\p",
    "\\u12",
    "\\u{110000}",
    "(?>a)",
  ],
  ...["^*", `${"(".repeat(100)}a${")".repeat(100)}`, "a".repeat(5000), "\\ud800"],
])("%p is refused", (pattern) => {
  expect(() => parseRegex(pattern, budget()).length + textsWithMatch(pattern, budget()).edges.length).toThrow(
    RegexSyntaxError,
  );
});

test("what needs too many states is refused before it costs much", () => {
  expect(() => textsWithMatch("(a|b)*a(a|b){20}", budget())).toThrow(GrammarTooComplexError);
  expect(() => textsMatched("(((a{99}){99}){99}){99}", budget())).toThrow(GrammarTooComplexError);
});

test("a property is looked up once, and many are too many", () => {
  const steps = () => new Budget("pattern", 200_000);
  expect(() => textsMatched("\\p{L}".repeat(30), steps())).not.toThrow();
  const scripts = ["Greek", "Latin", "Cyrillic", "Arabic", "Hebrew"].map((name) => `\\p{Script=${name}}`);
  expect(() => textsMatched(scripts.join(""), steps())).toThrow(GrammarTooComplexError);
});
