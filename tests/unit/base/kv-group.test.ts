import { expect, setDefaultTimeout, test } from "bun:test";
import fc from "fast-check";
import { blocksOfSequence, firstSeenBlock, type KvGroup, tokensInPool } from "../../../src/base/kv-group.ts";

setDefaultTimeout(300_000);

/** Blocks that are seen of one group while the token at `position` is computed, itself included. */
const seen = (group: KvGroup, position: number, blockSize: number) =>
  Math.floor(position / blockSize) + 1 - firstSeenBlock(group, position, blockSize);

test("a sequence needs at most what its groups see of it, at whichever token; the longest is the one that still fits", () => {
  const groups = fc.array(
    fc.record({ reach: fc.oneof(fc.integer({ min: 1, max: 40 }), fc.constant(Infinity)) }),
    { minLength: 1, maxLength: 4 },
  );
  const property = fc.property(
    groups,
    fc.integer({ min: 1, max: 8 }),
    fc.nat(60),
    (all, blockSize, blocks) => {
      const most = (tokens: number) =>
        all.reduce((sum, group) => {
          const counts = Array.from({ length: tokens }, (_, position) => seen(group, position, blockSize));
          return sum + Math.max(0, ...counts);
        }, 0);
      // No group sees more at a later token: those without a window have filled the pool by then, or there are none.
      const length = Math.min(500, tokensInPool(all, blocks, blockSize));
      expect(most(length)).toBeLessThanOrEqual(blocks);
      expect(blocksOfSequence(all, length, blockSize)).toBeGreaterThanOrEqual(most(length));
      expect(blocksOfSequence(all, length, blockSize)).toBeLessThanOrEqual(blocks);
      if (length < 500) expect(blocksOfSequence(all, length + 1, blockSize)).toBeGreaterThan(blocks);
    },
  );
  fc.assert(property, { numRuns: 300 });
});

test("without a window the pool's tokens are those of its blocks", () => {
  expect(tokensInPool([{ reach: Infinity }], 7, 16)).toBe(112);
  expect(tokensInPool([{ reach: Infinity }, { reach: 33 }], 7, 16)).toBe(64);
  expect(tokensInPool([{ reach: 33 }, { reach: 33 }], 5, 16)).toBe(32);
  expect(tokensInPool([{ reach: 33 }, { reach: 33 }], 6, 16)).toBe(Infinity);
  expect(tokensInPool([{ reach: 33 }], 0, 16)).toBe(0);
});
