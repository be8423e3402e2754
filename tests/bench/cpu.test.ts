import { expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";
import { LLM } from "octavo";
import { writeGguf, writeQuantisedConfig } from "../../bench/cpu-files.ts";
import { measureBandwidth } from "../../src/backend/simd/bandwidth.ts";
import { temporaryFolder } from "../support.ts";

setDefaultTimeout(300_000);

const MODEL = join(import.meta.dir, "../../models/tiny-stories");

test.each([
  ["BF16", "bfloat16"],
  ["Q4_0", "int4 in groups of 32"],
  ["Q4_K", "int4 in groups of 32 of superblocks with minima"],
] as const)(
  "a file of random weights in %s for other engines is one that Octavo runs",
  async (matrices, format) => {
    using folder = temporaryFolder();
    const path = folder.file("model.gguf");
    writeGguf(MODEL, path, matrices);
    await using llm = await LLM.create(path, { device: "cpu", skipTokenizerInit: true });
    expect(llm.weights.format).toBe(format);
    const [output] = await llm.generate([{ promptTokenIds: [1, 2, 3] }], { maxTokens: 2, ignoreEos: true });
    expect(output!.outputs[0]!.tokenIds.length).toBe(2);
  },
);

test("a config of random weights in 4 bits is one of AWQ's", async () => {
  using folder = temporaryFolder();
  writeQuantisedConfig(MODEL, folder.file("int4"));
  await using llm = await LLM.create(folder.file("int4"), {
    ...{ device: "cpu", loadFormat: "dummy", skipTokenizerInit: true },
  });
  expect(llm.weights.format).toBe("int4 in groups of 128 with zero points");
});

test("memory is read on one thread, on two, and on those of a large machine", async () => {
  for (const threads of [1, 2])
    expect(await measureBandwidth({ threads, bytes: 2 ** 23, runs: 2 })).toBeGreaterThan(0);
  // One unit: no thread but this one starts.
  expect(await measureBandwidth({ threads: 1024, bytes: 2 ** 22, runs: 1 })).toBeGreaterThan(0);
});
