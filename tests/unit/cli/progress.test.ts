import { expect, setDefaultTimeout, test } from "bun:test";
import { ProgressLines } from "../../../src/cli/progress.ts";

setDefaultTimeout(300_000);

test("a log gets a line every ten seconds for each title, and none for what takes less", () => {
  const lines: string[] = [];
  let now = 0;
  const progress = new ProgressLines(
    (line) => lines.push(line),
    () => now,
  );
  for (; now < 35_000; now += 100) {
    progress.update("a", now, 40_000, "of 40");
    if (now < 9_000) progress.update("b", now, 9_000, "of 9");
  }
  expect(lines).toEqual(["a: 25% of 40", "a: 50% of 40", "a: 75% of 40"]);
  progress.update("empty", 0, 0, "");
  now += 10_000;
  progress.update("empty", 0, 0, "");
  expect(lines.at(-1)).toBe("empty: 0%");
});
