import { beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { InvalidRequestError } from "../../../src/base/errors.ts";
import { checkGrammar } from "../../../src/grammar/user-grammar.ts";
import { GrammarWalker } from "./walker.ts";

setDefaultTimeout(300_000);

let walker: GrammarWalker;
beforeAll(async () => {
  walker = await GrammarWalker.create();
});

test.each<[grammar: string, text: string]>([
  ['root ::= "a" | "b"', "b"],
  ['# a comment\nroot ::= item ("," item)*\nitem ::= [0-9]+ # digits\n', "1,22"],
  ['root ::=\n  "x" [^y]{1,2}\n  | "é"', "é"],
  ['root ::= "a"? "\\"" "\\u00e9" rest-1\nrest-1 ::= [a-z]* (= "!")\n', '"éab'],
])("%p is accepted, and compiles", async (grammar, text) => {
  expect(() => checkGrammar(grammar, "grammar")).not.toThrow();
  expect(await walker.accepts(grammar, text)).toBe(true);
});

test.each<[grammar: string, message: string]>([
  ["", "no rule root"],
  ['a ::= "b"', "no rule root"],
  ["root ::= a", "no rule a"],
  ['root ::= "a', "line 1: cannot read"],
  ['root ::= "a"\nroot ::= "b"', "line 2: the rule root is defined twice"],
  ["root ::= (", "a ( without its )"],
  ['root ::= "a")', "a ) without its ("],
  [`root ::= ${"(".repeat(101)}"a"${")".repeat(101)}`, "parentheses within more than 100"],
  ["root ::= *", "nothing before *"],
  ['root ::= | {3} "a"', "nothing before {3}"],
  ['root ::= "a"{3,2}', "the quantifier"],
  ['root ::= "a"{1,1000}', "the quantifier"],
  ["root ::= [à-ï]", "beyond ASCII"],
  ["root ::= [\\u00e0-\\u00ef]", "beyond ASCII"],
  ['"a" ::= root', "a rule begins with"],
  ['?start: "a"', "a rule begins with"],
  ['root ::= "a" ::= "b"', "::= without the name"],
])("%p is refused", (grammar, message) => {
  let error: unknown;
  try {
    checkGrammar(grammar, "grammar");
  } catch (thrown) {
    error = thrown;
  }
  expect(error).toBeInstanceOf(InvalidRequestError);
  expect(error).toMatchObject({ code: "invalid_grammar", param: "grammar" });
  expect((error as Error).message).toContain(message);
});
