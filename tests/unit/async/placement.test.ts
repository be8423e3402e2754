import { describe, expect, setDefaultTimeout, test } from "bun:test";
import fc from "fast-check";
import { blockKeys, KnownPrefixes } from "../../../src/async/known-prefixes.ts";
import { type Place, type PlacedRequest, Placement } from "../../../src/async/placement.ts";
import { InvariantError } from "../../../src/base/errors.ts";
import { thrown } from "../../support.ts";

setDefaultTimeout(300_000);

const BLOCK = 4;
const ALL = () => true;

/** `blocks` blocks of tokens that begin with `first`. */
const tokensOf = (first: number, blocks: number) =>
  Array.from({ length: blocks * BLOCK }, (_, i) => (i === 0 ? first : i));

function request(
  tokens: readonly number[],
  { maxTokens = 8, n = 1, cacheSalt = "" }: { maxTokens?: number; n?: number; cacheSalt?: string } = {},
): PlacedRequest {
  return { promptTokenIds: Int32Array.from(tokens), cacheSalt, maxTokens, sampling: { n } };
}

describe("the keys of a prompt's blocks", () => {
  const keys = (tokens: readonly number[], cacheSalt = "") =>
    blockKeys(request(tokens, { cacheSalt }), BLOCK);

  test("one for each full block, equal as far as the prompts are", () => {
    expect(keys([1, 2, 3])).toEqual([]);
    const [one, two] = [keys([1, 2, 3, 4, 5, 6, 7, 8, 9]), keys([1, 2, 3, 4, 5, 6, 7, 0])];
    expect([one.length, two.length]).toEqual([2, 2]);
    expect(one[0]).toBe(two[0]!);
    expect(one[1]).not.toBe(two[1]!);
  });

  test("stand for everything before the block, the salt too", () => {
    expect(keys([9, 2, 3, 4, 5, 6, 7, 8])[1]).not.toBe(keys([1, 2, 3, 4, 5, 6, 7, 8])[1]!);
    expect(keys([1, 2, 3, 4], "a")[0]).not.toBe(keys([1, 2, 3, 4], "b")[0]!);
  });

  test("are of the prompt alone where its array is a part of another", () => {
    const part = Int32Array.from([7, 7, 1, 2, 3, 4]).subarray(2);
    expect(blockKeys({ promptTokenIds: part, cacheSalt: "" }, BLOCK)).toEqual(keys([1, 2, 3, 4]));
  });
});

describe("the prefixes that an engine knows", () => {
  const [A, B, C, D] = [1n, 2n, 3n, 4n] as const;

  test("are the leading blocks alone", () => {
    const known = new KnownPrefixes(8);
    known.learn([A, B, C]);
    expect([known.match([A, B, D]), known.match([D, A]), known.match([])]).toEqual([2, 0, 0]);
    known.clear();
    expect([known.match([A]), known.size]).toEqual([0, 0]);
  });

  test("are forgotten when there is no room: the oldest prompt's last blocks first", () => {
    const known = new KnownPrefixes(3);
    known.learn([A, B, C]);
    known.learn([D]);
    expect([known.match([A, B, C]), known.match([D])]).toEqual([2, 1]);
    known.learn([A]);
    known.learn([C]);
    expect([known.match([A, B]), known.match([D]), known.match([C])]).toEqual([1, 1, 1]);
  });

  test("of a prompt above the capacity are its first; without a cache there are none", () => {
    const known = new KnownPrefixes(2);
    known.learn([A, B, C, D]);
    expect(known.match([A, B, C, D])).toBe(2);
    const none = new KnownPrefixes(0);
    none.learn([A]);
    expect(none.size).toBe(0);
  });
});

describe("placement", () => {
  test("unrelated prompts take turns", () => {
    const placement = new Placement([100, 100, 100], BLOCK);
    const places = [1, 2, 3, 4, 5, 6].map((first) => {
      const place = placement.place(request(tokensOf(first, 2)), ALL);
      place.release();
      return place.replica;
    });
    expect(places).toEqual([0, 1, 2, 0, 1, 2]);
  });

  test("a prompt goes where its prefix is cached, however the rest of it reads", () => {
    const placement = new Placement([100, 100], BLOCK);
    const shared = [tokensOf(1, 4), tokensOf(2, 4)] as const;
    const homes = shared.map((tokens) => placement.place(request(tokens), ALL).replica);
    expect(homes).toEqual([0, 1]);
    for (const [i, tail] of [5, 6, 7, 8, 9].entries()) {
      const which = i % 2;
      expect(placement.place(request([...shared[which]!, tail, tail]), ALL).replica).toBe(which);
    }
  });

  test("but not when that replica is ahead by more than the prefix saves; afterwards both know it", () => {
    const placement = new Placement([1000, 1000], BLOCK);
    const shared = tokensOf(1, 10);
    const open: Place[] = [];
    const place = (tail: number) => {
      const placed = placement.place(request([...shared, tail], { maxTokens: 30 }), ALL);
      open.push(placed);
      return placed.replica;
    };
    // Loads: 71 after the first, then 31 each; another replica lacks 40 tokens more.
    expect([place(2), place(3), place(4), place(5), place(6), place(7)]).toEqual([0, 1, 0, 1, 0, 1]);
    for (const { release } of open) release();
    expect(place(8)).toBe(0);
    expect(placement.load(0)).toBe(31);
  });

  test("a long prefix holds requests together, a short one does not", () => {
    const replicasOf = (blocks: number) => {
      const placement = new Placement([10_000, 10_000], BLOCK);
      const shared = tokensOf(1, blocks);
      placement.place(request(shared, { maxTokens: 1 }), ALL).release();
      return [2, 3, 4].map((tail) => {
        return placement.place(request([...shared, tail], { maxTokens: 30 }), ALL).replica;
      });
    };
    expect(replicasOf(1000)).toEqual([0, 0, 0]);
    expect(replicasOf(2)).toEqual([0, 1, 0]);
  });

  test("salts keep prefixes apart", () => {
    const placement = new Placement([100, 100], BLOCK);
    const salted = (cacheSalt: string) => {
      const place = placement.place(request(tokensOf(1, 4), { cacheSalt }), ALL);
      place.release();
      return place.replica;
    };
    expect([salted("a"), salted("b"), salted("b"), salted("a")]).toEqual([0, 1, 1, 0]);
  });

  test("a cache that is full yields to one with room, unless most of the prompt is in it", () => {
    const placement = new Placement([8, 8], BLOCK);
    const to = (replica: number) => (other: number) => other === replica;
    placement.place(request(tokensOf(1, 8)), to(0)).release();
    const mostKnown = [...tokensOf(1, 8).slice(0, 6 * BLOCK), ...tokensOf(3, 2)];
    const leastKnown = [...tokensOf(1, 8).slice(0, 2 * BLOCK), ...tokensOf(4, 6)];
    expect(placement.place(request(mostKnown, { maxTokens: 0 }), ALL).replica).toBe(0);
    expect(placement.place(request(leastKnown, { maxTokens: 0 }), ALL).replica).toBe(1);
  });

  test("weighs all completions, and none for more than 1,024 tokens", () => {
    const placement = new Placement([0, 0], BLOCK);
    placement.place(request([1, 2], { n: 3, maxTokens: 100_000 }), ALL);
    expect([placement.load(0), placement.load(1)]).toEqual([2 + 3 * 1024, 0]);
    for (let i = 0; i < 3; i++) placement.place(request([1, 2], { maxTokens: 1022 }), ALL);
    expect([placement.load(0), placement.load(1)]).toEqual([2 + 3 * 1024, 3 * 1024]);
  });

  test("an empty cache draws nothing; a replica that is not eligible gets nothing", () => {
    const placement = new Placement([100, 100], BLOCK);
    const place = (isEligible: (replica: number) => boolean) => {
      const { replica, release } = placement.place(request(tokensOf(1, 4)), isEligible);
      release();
      return replica;
    };
    expect([place(ALL), place(ALL)]).toEqual([0, 0]);
    expect(place((replica) => replica === 1)).toBe(1);
    placement.forget(0);
    expect(place(ALL)).toBe(1);
    expect(thrown(() => place(() => false))).toBeInstanceOf(InvariantError);
  });

  test("whatever comes: only the eligible, nobody far ahead, and nothing left in the end", () => {
    const arrival = fc.record({
      first: fc.integer({ min: 0, max: 3 }),
      blocks: fc.integer({ min: 0, max: 12 }),
      maxTokens: fc.integer({ min: 1, max: 2000 }),
      n: fc.integer({ min: 1, max: 3 }),
      alive: fc.integer({ min: 1, max: 7 }),
      releases: fc.integer({ min: 0, max: 2 }),
    });
    const capacities = fc.array(fc.integer({ min: 0, max: 20 }), { minLength: 3, maxLength: 3 });
    fc.assert(
      fc.property(capacities, fc.array(arrival, { maxLength: 60 }), (sizes, arrivals) => {
        const placement = new Placement(sizes, BLOCK);
        const open: Place[] = [];
        for (const { first, blocks, maxTokens, n, alive, releases } of arrivals) {
          const tokens = [...tokensOf(first, blocks), 99];
          const loads = sizes.map((_, replica) => placement.load(replica));
          const isEligible = (replica: number) => (alive & (1 << replica)) !== 0;
          const place = placement.place(request(tokens, { maxTokens, n }), isEligible);
          expect(isEligible(place.replica)).toBe(true);
          const least = Math.min(...loads.filter((_, replica) => isEligible(replica)));
          expect(loads[place.replica]! - least).toBeLessThanOrEqual(2 * tokens.length);
          expect(placement.load(place.replica)).toBeGreaterThan(loads[place.replica]!);
          open.push(place);
          for (const { release } of open.splice(0, releases)) {
            release();
            release();
          }
        }
        for (const { release } of open) release();
        expect(sizes.map((_, replica) => placement.load(replica))).toEqual([0, 0, 0]);
      }),
    );
  });
});
