import { expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";
import { start } from "../../bench/startup-child.ts";
import { CpuBackend } from "../../src/backend/cpu/cpu-backend.ts";
import { FakeMachine } from "../unit/backend/cuda/fake-machine.ts";

setDefaultTimeout(300_000);

test("a start on a GPU has all phases, in their order", async () => {
  using machine = new FakeMachine({ memory: 2 ** 30 });
  const options = { loadFormat: "dummy", skipTokenizerInit: true, maxNumSeqs: 4, maxModelLen: 64 } as const;
  const model = join(import.meta.dir, "../../models/tiny-stories");
  const ends = await start({ model, options: { ...options, maxNumBatchedTokens: 64 } }, () =>
    machine.backend(),
  );
  expect(ends.map(([phase]) => phase)).toEqual([
    ...["process", "tokenizer, libraries", "weights, kernels", "warm-up", "matrix tuning", "KV cache"],
    ...["graphs", "first token"],
  ]);
  const times = ends.map(([, at]) => at);
  expect(times).toEqual(times.toSorted((a, b) => a - b));
  expect(machine.leftovers).toEqual([]);
});

test("one on the CPU has those in which something happens", async () => {
  const ends = await start({ options: { maxModelLen: 64 } }, () => new CpuBackend());
  expect(ends.map(([phase]) => phase)).toEqual(["process", "tokenizer, libraries", "load", "first token"]);
});
