import { expect, setDefaultTimeout, test } from "bun:test";
import { compareContexts } from "../../bench/contexts.ts";
import type { DecodeShares } from "../../bench/profile.ts";

setDefaultTimeout(300_000);

function shares(contextTokens: number, graphMilliseconds: number, attention: number): DecodeShares {
  const classes = [
    { class: "linear" as const, ops: 4, milliseconds: 3, share: 0 },
    { class: "attention" as const, ops: 2, milliseconds: attention, share: 0 },
  ];
  return {
    ...{ batch: 1, contextTokens, graphMilliseconds, opMilliseconds: 3 + attention, samples: 1 },
    classes,
  };
}

test("steps are compared with that of the shortest contexts, whatever the order", () => {
  const [short, long] = compareContexts(
    [shares(1000, 4, 2), shares(100, 2.5, 0.5)],
    (tokens) => tokens / 1000,
  );
  expect(short).toEqual({
    ...{ contextTokens: 100, step: 2.5, attention: 0.5, others: 3, limit: 0.1 },
    ...{ growth: 0, limitGrowth: 0 },
  });
  expect(long).toMatchObject({ contextTokens: 1000, attention: 2, others: 3, growth: 1.5 });
  expect(long!.limitGrowth).toBeCloseTo(0.9, 12);
});
