import { afterEach, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { GrammarTooComplexError } from "../../../src/base/errors.ts";
import { GrammarStage, type Matcher } from "../../../src/grammar/grammar-stage.ts";
import { packTokens } from "../../../src/tokenizer/token-table.ts";
import { Tokenizer } from "../../../src/tokenizer/tokenizer.ts";
import { FOLDERS } from "../tokenizer/models.ts";

setDefaultTimeout(300_000);

let tokenizer: Tokenizer;
let eos: number;
beforeAll(async () => {
  tokenizer = await Tokenizer.load(FOLDERS.tinyStories);
  tokenizer.prepareEncoder();
  eos = Array.from({ length: tokenizer.vocabSize }, (_, id) => id).findLast((id) => tokenizer.isSpecial(id))!;
});

const stages: GrammarStage[] = [];
function open(options = {}): GrammarStage {
  const stage = new GrammarStage(() => packTokens(tokenizer), tokenizer.vocabSize + 40, options);
  stages.push(stage);
  return stage;
}
afterEach(() => {
  for (const stage of stages.splice(0)) stage.dispose();
});

const init = (grammar: string) => ({ grammar, stopTokenIds: [eos], allowedTokenIds: undefined });

async function answered(stage: GrammarStage, matcher: Matcher): Promise<void> {
  stage.flush();
  while (matcher.isPending) await stage.changed();
}

function allowed({ mask }: Matcher): number[] {
  return Array.from({ length: mask.length * 32 }, (_, id) => id).filter(
    (id) => (mask[id >>> 5]! >>> (id & 31)) & 1,
  );
}

test("a matcher allows what continues the text, and the end where the text is complete", async () => {
  const stage = open();
  const matcher = stage.open(init('root ::= "ab" | "a"\n'));
  expect(matcher.isPending).toBe(true);
  await answered(stage, matcher);
  const texts = allowed(matcher).map((id) => tokenizer.decode([id]));
  expect(texts.every((text) => text === "a" || text === "ab")).toBe(true);
  const a = allowed(matcher).find((id) => tokenizer.decode([id]) === "a")!;
  matcher.accept(a);
  expect(matcher.isPending).toBe(true);
  await answered(stage, matcher);
  expect(allowed(matcher).includes(eos)).toBe(true);
  expect(allowed(matcher).every((id) => id === eos || tokenizer.decode([id]) === "b")).toBe(true);
  matcher.accept(eos);
  await answered(stage, matcher);
  expect(matcher.isComplete).toBe(true);
});

test("special tokens and ids without a token are not allowed within any text", async () => {
  const stage = open();
  const matcher = stage.open({ ...init("root ::= [^x] root | [x]\n"), stopTokenIds: [eos] });
  await answered(stage, matcher);
  const ids = allowed(matcher);
  expect(ids.length).toBeGreaterThan(100);
  expect(ids.filter((id) => id >= tokenizer.vocabSize || tokenizer.isSpecial(id))).toEqual([]);
});

test("tokens that a request allows are all that its grammar allows", async () => {
  const stage = open();
  const all = stage.open(init("root ::= [a-z]\n"));
  await answered(stage, all);
  const some = allowed(all).slice(0, 2);
  const few = stage.open({ ...init("root ::= [a-z]\n"), allowedTokenIds: [...some, eos] });
  await answered(stage, few);
  expect(allowed(few)).toEqual(some);
});

test("an abort ends the matcher that it is due to; a new Worker goes on with the others", async () => {
  const stage = open();
  const good = stage.open(init('root ::= "a" "b" "c"\n'));
  await answered(stage, good);
  good.accept(allowed(good).find((id) => tokenizer.decode([id]) === "a")!);
  await answered(stage, good);
  const before = allowed(good);
  const memory = good.memory;
  const bad = stage.open(init("root ::= (\n"));
  const later = stage.open(init('root ::= "d"\n'));
  await answered(stage, bad);
  expect(bad.error).toBeInstanceOf(GrammarTooComplexError);
  await answered(stage, later);
  expect(later.error).toBeUndefined();
  await answered(stage, good);
  expect(good.error).toBeUndefined();
  expect(allowed(good)).toEqual(before);
  // The old Worker may go on writing to what it had.
  expect(good.memory).not.toBe(memory);
  good.accept(before.find((id) => tokenizer.decode([id]) === "b")!);
  await answered(stage, good);
  expect(allowed(good).map((id) => tokenizer.decode([id]))).toEqual(["c"]);
});

test("a Worker that does not come to an end is replaced", async () => {
  const stage = open({ maxBusyMs: 1500 });
  const good = stage.open(init('root ::= "a" "b"\n'));
  await answered(stage, good);
  good.accept(allowed(good)[0]!);
  await answered(stage, good);
  const before = allowed(good);
  good.accept(before[0]!);
  await answered(stage, good);
  const other = stage.open(init('root ::= "a" "b"\n'));
  await answered(stage, other);
  const c = '[^"\\\\\\x00-\\x1F]';
  const endless = stage.open(init(`root ::= ${`${c}? `.repeat(50)}\n`));
  other.accept(allowed(other)[0]!);
  stage.flush();
  // Nobody waits until then, and who is behind it is only late.
  stage.settle(true);
  expect(other.isSlow || !other.isPending).toBe(true);
  expect([good, other].map(({ error }) => error)).toEqual([undefined, undefined]);
  await answered(stage, endless);
  expect(endless.error).toBeInstanceOf(GrammarTooComplexError);
  await answered(stage, good);
  expect(good.error).toBeUndefined();
  await answered(stage, other);
  expect(other.error).toBeUndefined();
  expect(allowed(other)).toEqual(before);
});

test("disposed matchers are forgotten", async () => {
  const stage = open();
  const matchers = Array.from({ length: 5 }, () => stage.open(init('root ::= "a"\n')));
  expect(stage.numLive).toBe(5);
  for (const matcher of matchers) matcher.dispose();
  matchers[0]!.dispose();
  expect(stage.numLive).toBe(0);
});
