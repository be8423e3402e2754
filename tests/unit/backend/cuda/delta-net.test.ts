import { afterAll, expect, setDefaultTimeout, test } from "bun:test";
import type { DeltaNetShape } from "../../../../src/backend/delta-net.ts";
import { ConfigError, UnsupportedModelError } from "../../../../src/base/errors.ts";
import { FakeMachine } from "./fake-machine.ts";
import { plainForm } from "./kernel-units.ts";

setDefaultTimeout(300_000);

const machine = new FakeMachine();
afterAll(() => machine[Symbol.dispose]());

const RULE: DeltaNetShape = { numKeyHeads: 2, numValueHeads: 4, keyDim: 64, valueDim: 64, convWidth: 4 };
const SHAPE = {
  ...{ vocabSize: 1024, hiddenSize: 256, intermediateSize: 512, numHeads: 4, numKvHeads: 2 },
  ...{ headDim: 64, blockSize: 16 },
  attentionForms: [plainForm(64)],
} as const;

test("batchInvariant is refused by its name, and heads that kernels do not take by their size", async () => {
  const invariant = machine.backend("bfloat16", { batchInvariant: true });
  const error = await invariant.prepare({ ...SHAPE, deltaNet: RULE }).catch((reason: unknown) => reason);
  expect(error).toBeInstanceOf(ConfigError);
  expect((error as ConfigError).option).toBe("batchInvariant");
  invariant.dispose();

  const backend = machine.backend("bfloat16");
  const odd = await backend
    .prepare({ ...SHAPE, deltaNet: { ...RULE, keyDim: 96 } })
    .catch((reason: unknown) => reason);
  expect(odd).toBeInstanceOf(UnsupportedModelError);
  expect(`${odd}`).toContain("heads of 96 dimensions");
  backend.dispose();
});
