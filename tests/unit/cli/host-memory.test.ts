import { expect, setDefaultTimeout, spyOn, test } from "bun:test";
import { totalmem } from "node:os";
import { hostMemory } from "../../../src/cli/host-memory.ts";

setDefaultTimeout(300_000);

test.each([
  ["none that is known", 0, totalmem()],
  ["a container's", 2 ** 29, 2 ** 29],
  ["more than there is", 2 ** 63, totalmem()],
])("the limit of a process's memory: %s", (_, limit, expected) => {
  using constrained = spyOn(process, "constrainedMemory").mockReturnValue(limit);
  expect(hostMemory()).toBe(expected);
  expect(constrained).toHaveBeenCalled();
});
