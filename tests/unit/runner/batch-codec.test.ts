import { expect, setDefaultTimeout, test } from "bun:test";
import fc from "fast-check";
import { decodeBatch, decodeMasks, encodeBatch, encodeMasks } from "../../../src/runner/batch-codec.ts";
import type { ScheduledBatch } from "../../../src/runner/types.ts";

setDefaultTimeout(300_000);

const token = fc.nat(2 ** 18);
const tokens = fc.array(token, { maxLength: 8 });
const real = fc.double({ noNaN: true });
const optional = <T>(name: string, value: fc.Arbitrary<T>) =>
  fc.option(
    value.map((value) => ({ [name]: value })),
    { nil: {} },
  );

const plainSampling = fc.record({
  ...{ temperature: real, topP: real, minP: real, topK: fc.integer({ min: -1, max: 2 ** 20 }) },
  ...{ repetitionPenalty: real, presencePenalty: real, frequencyPenalty: real },
  ...{ seed: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }), bannedTokens: tokens, bannedUntil: token },
  logitBias: fc.array(fc.tuple(token, real), { maxLength: 3 }),
  allowedTokenIds: fc.option(tokens, { nil: undefined }),
  badWords: fc.array(tokens, { maxLength: 3 }),
});
const sampling = fc
  .tuple(plainSampling, optional("masked", fc.constant(true)))
  .map(([fields, masked]) => ({ ...fields, ...masked }));
const plainJoin = fc.record({
  ...{ slot: token, promptLength: token, numComputedTokens: token, sampling },
  tokens: fc.oneof(tokens, fc.constant(Array(5000).fill(7))).map((ids) => Int32Array.from(ids)),
});
const join = fc
  .tuple(plainJoin, optional("snapshot", fc.nat(9)))
  .map(([fields, snapshot]) => ({ ...fields, ...snapshot }));
const row = fc
  .tuple(
    fc.record({ slot: token, count: token, sample: fc.boolean() }),
    optional("drafts", fc.nat(4)),
    optional("logprobs", fc.integer({ min: -1, max: 20 })),
    optional("promptLogprobs", fc.integer({ min: -1, max: 20 })),
    optional("logits", fc.constant(true)),
    optional("masked", fc.constant(true)),
  )
  .map((parts) => Object.assign({}, ...parts));
const plainBatch = fc.record({
  joins: fc.array(join, { maxLength: 3 }),
  blockTableUpdates: fc.array(fc.record({ slot: token, group: token, index: token, block: token }), {
    maxLength: 5,
  }),
  rows: fc.array(row, { maxLength: 5 }),
  ...{ decodeRows: token, numTokens: token },
});
const snapshots = fc.array(fc.record({ slot: token, snapshot: token }), { minLength: 1, maxLength: 3 });
const batch = fc
  .tuple(plainBatch, optional("snapshots", snapshots))
  .map(([fields, kept]) => ({ ...fields, ...kept })) as fc.Arbitrary<ScheduledBatch>;

test("a batch comes back as it was, to the bit", () => {
  fc.assert(
    fc.property(batch, (given) => {
      expect(decodeBatch(encodeBatch(given))).toStrictEqual(given);
    }),
  );
});

test("masks come back as they were", () => {
  const words = fc.array(fc.integer({ min: 0, max: 2 ** 32 - 1 }), { maxLength: 8 });
  const masks = fc.array(fc.record({ row: token, mask: words.map((list) => Uint32Array.from(list)) }));
  fc.assert(
    fc.property(masks, (given) => {
      expect(decodeMasks(encodeMasks(given))).toStrictEqual(given);
    }),
  );
});

test("what was encoded does not change with the next batch", () => {
  const of = (numTokens: number) => ({
    joins: [],
    blockTableUpdates: [],
    rows: [],
    decodeRows: 0,
    numTokens,
  });
  const first = encodeBatch(of(1));
  encodeBatch(of(2));
  expect(decodeBatch(first)).toStrictEqual(of(1));
});
