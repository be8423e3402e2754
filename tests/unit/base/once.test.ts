import { expect, setDefaultTimeout, test } from "bun:test";
import { once } from "../../../src/base/once.ts";

setDefaultTimeout(300_000);

test("what is made once is made when it is first asked for, and is the same each time", () => {
  let calls = 0;
  const made = once(() => ({ call: ++calls }));
  expect(calls).toBe(0);
  const first = made();
  expect(first).toEqual({ call: 1 });
  expect(made()).toBe(first);
  expect(calls).toBe(1);
});
