import { afterEach, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import type { Matcher } from "../../../src/grammar/grammar-stage.ts";
import { GrammarStages } from "../../../src/grammar/grammar-stages.ts";
import { packTokens } from "../../../src/tokenizer/token-table.ts";
import { Tokenizer } from "../../../src/tokenizer/tokenizer.ts";
import { FOLDERS } from "../tokenizer/models.ts";

setDefaultTimeout(300_000);

let tokenizer: Tokenizer;
beforeAll(async () => {
  tokenizer = await Tokenizer.load(FOLDERS.tinyStories);
});

let stages: GrammarStages;
afterEach(() => stages.dispose());

const init = (grammar: string) => ({ grammar, stopTokenIds: [0], allowedTokenIds: undefined });
const A = init('root ::= "a" root | "a"\n');
const B = init('root ::= "b" root | "b"\n');
const C = init('root ::= "c" root | "c"\n');
const D = init('root ::= "d" root | "d"\n');

function openMany(count: number, of = A): Matcher[] {
  return Array.from({ length: count }, () => stages.open(of));
}

test("a stage is started when the others have their share, up to the limit", () => {
  stages = new GrammarStages(() => packTokens(tokenizer), tokenizer.vocabSize, 2);
  expect(stages.numStages).toBe(0);
  const first = openMany(4);
  expect(stages.numStages).toBe(1);
  openMany(4, B);
  expect(stages.numStages).toBe(2);
  openMany(4);
  expect([stages.numStages, stages.numLive]).toEqual([2, 12]);
  for (const matcher of first) matcher.dispose();
  expect(stages.numLive).toBe(8);
  stages.dispose();
  expect(stages.numLive).toBe(0);
});

test("a grammar is compiled where nobody waits, and followed where it is compiled", () => {
  stages = new GrammarStages(() => packTokens(tokenizer), tokenizer.vocabSize, 3);
  const [one, two] = [stages.open(A), stages.open(B)];
  expect(stages.numStages).toBe(2);
  stages.open(A);
  expect(stages.numStages).toBe(2);
  two.dispose();
  stages.open(C);
  expect(stages.numStages).toBe(2);
  one.dispose();
  stages.open(B);
  expect(stages.numStages).toBe(2);
  stages.open(D);
  expect(stages.numStages).toBe(3);
});

test("matchers of all stages are answered, and each tells", async () => {
  stages = new GrammarStages(() => packTokens(tokenizer), tokenizer.vocabSize, 3);
  const matchers = openMany(12);
  expect(stages.numStages).toBe(3);
  while (matchers.some(({ isPending }) => isPending)) await stages.changed();
  // The text may end after an "a", and not before.
  const allowsEnd = ({ mask }: Matcher) => (mask[0]! & 1) === 1;
  const before = matchers.map(allowsEnd);
  const token = Array.from({ length: tokenizer.vocabSize }, (_, id) => id).find(
    (id) => tokenizer.decode([id]) === "a",
  )!;
  for (const matcher of matchers) matcher.accept(token);
  stages.flush();
  // On a busy machine they may be late.
  for (stages.settle(true); matchers.some(({ isPending }) => isPending); ) await stages.changed();
  expect(matchers.map(({ error, isComplete }) => [error, isComplete])).toEqual(
    matchers.map(() => [undefined, false]),
  );
  expect([before, matchers.map(allowsEnd)]).toEqual([matchers.map(() => false), matchers.map(() => true)]);
});
