import { describe, expect, setDefaultTimeout, test } from "bun:test";
import fc from "fast-check";
import { InvalidRequestError } from "../../../src/base/errors.ts";
import { StopStringMatcher } from "../../../src/engine/stop-strings.ts";

setDefaultTimeout(300_000);

function run(stops: string[], includeStop: boolean, deltas: string[]) {
  const matcher = new StopStringMatcher(stops, includeStop);
  const longest = Math.max(1, ...stops.map((stop) => stop.length));
  let [text, seen, matched]: [string, number, string | undefined] = ["", 0, undefined];
  for (const delta of deltas) {
    const result = matcher.push(delta);
    text += result.text;
    seen += delta.length;
    matched = result.matched;
    if (matched === undefined) expect(seen - text.length).toBeLessThan(longest);
  }
  return { text: text + matcher.flush(), matched };
}

/** Character by character; the longest of the stop strings that end at the first possible place. */
function naive(stops: string[], includeStop: boolean, text: string) {
  for (let end = 1; end <= text.length; end++) {
    const ending = stops.filter((stop) => text.slice(0, end).endsWith(stop));
    const matched = ending.sort((a, b) => b.length - a.length)[0];
    if (matched !== undefined)
      return { text: text.slice(0, includeStop ? end : end - matched.length), matched };
  }
  return { text, matched: undefined };
}

test("agrees with a naive search, however the text is cut", () => {
  const letters = (maxLength: number, minLength = 0) =>
    fc.string({ unit: fc.constantFrom("a", "b", "c"), minLength, maxLength });
  const stops = fc.array(letters(5, 1), { maxLength: 4 });
  fc.assert(
    fc.property(
      stops,
      fc.boolean(),
      fc.array(letters(6), { maxLength: 12 }),
      (stops, includeStop, deltas) => {
        expect(run(stops, includeStop, deltas)).toEqual(naive(stops, includeStop, deltas.join("")));
      },
    ),
    { numRuns: 2000 },
  );
});

describe("examples", () => {
  test.each<[string[], boolean, string[], string, string | undefined]>([
    [["\n\n"], false, ["a\n", "\nb"], "a", "\n\n"],
    [["\n\n"], true, ["a\n", "\nb", "c"], "a\n\n", "\n\n"],
    [["</s>"], false, ["x<", "/", "t>"], "x</t>", undefined],
    [["END"], false, ["EN", "EN", "D!"], "EN", "END"],
    [["👍"], false, ["ok 👍👍"], "ok ", "👍"],
    [[], false, ["all", " of it"], "all of it", undefined],
  ])("%p %p %p", (stops, includeStop, deltas, text, matched) => {
    expect(run(stops, includeStop, deltas)).toEqual({ text, matched });
  });

  test("an empty stop string is refused", () => {
    expect(() => new StopStringMatcher(["a", ""], false)).toThrow(InvalidRequestError);
  });
});
