import { describe, expect, setDefaultTimeout, test } from "bun:test";
import fc from "fast-check";
import { applyRuns, encodeRuns } from "../../../src/base/word-runs.ts";

setDefaultTimeout(300_000);

const words = (length: number) =>
  fc.array(fc.oneof(fc.integer({ min: 0, max: 3 }), fc.integer({ min: 0, max: 2 ** 32 - 1 })), {
    ...{ minLength: length, maxLength: length },
  });

describe("runs of words", () => {
  test("carry any change, and the whole without anything before", () => {
    const lists = fc.nat(40).chain((length) => fc.tuple(words(length), words(length)));
    fc.assert(
      fc.property(lists, ([before, after]) => {
        const copy = Uint32Array.from(before);
        const target = Uint32Array.from(after);
        applyRuns(copy, encodeRuns(target, Uint32Array.from(before)));
        expect(copy).toEqual(target);
        const fresh = new Uint32Array(target.length);
        applyRuns(fresh, encodeRuns(target, undefined));
        expect(fresh).toEqual(target);
      }),
    );
  });

  test("take few bytes for few changes", () => {
    const pool = new Uint32Array(100_000);
    expect(encodeRuns(pool, undefined).length).toBeLessThan(6);
    const next = pool.slice().fill(7, 500, 600);
    expect(encodeRuns(next, pool).length).toBe(4);
    expect(encodeRuns(next, next)).toEqual(new Uint8Array(0));
  });

  test("that go beyond the end are refused", () => {
    expect(() => applyRuns(new Uint32Array(3), encodeRuns(new Uint32Array(4), undefined))).toThrow(
      RangeError,
    );
  });
});
