import { expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import fc from "fast-check";
import { ModelDataError, ModelNotFoundError } from "../../../src/base/errors.ts";
import { GgufFile } from "../../../src/gguf/gguf-file.ts";
import { Checkpoint } from "../../../src/loader/checkpoint.ts";
import { readModelConfig } from "../../../src/models/config.ts";
import { readGenerationConfig } from "../../../src/models/generation-config.ts";
import { Tokenizer } from "../../../src/tokenizer/tokenizer.ts";
import { fixture } from "../../model/fixtures.ts";
import { cpuClock, temporaryFolder } from "../../support.ts";

setDefaultTimeout(300_000);

/** Every reader of a model file, one by one: what one refuses must not keep another from being tried. */
const READERS: readonly ((path: string) => unknown)[] = [
  (path) => readGenerationConfig(path, readModelConfig(path)),
  (path) => Checkpoint.open(path)[Symbol.dispose](),
  async (path) => {
    const tokenizer = await Tokenizer.load(path);
    tokenizer.decode(tokenizer.encode("the then"));
  },
];

test.each(["gguf-llama", "gguf-qwen2"] as const)(
  "flipped bytes in the header of %s cause typed errors only, in bounded memory and time",
  async (name) => {
    const model = fixture(name).modelDir;
    const sample = readFileSync(model);
    const { tensors } = GgufFile.header(model);
    const headerBytes = Math.min(...[...tensors.values()].map(({ begin }) => begin));
    using folder = temporaryFolder();
    const path = folder.file("model.gguf");
    const bytes = Buffer.from(sample);
    const spent = cpuClock();
    const before = process.memoryUsage.rss();
    let refused = 0;
    let runs = 0;
    const flips = fc.array(fc.tuple(fc.nat(headerBytes - 1), fc.nat(255)), { minLength: 1, maxLength: 4 });
    await fc.assert(
      fc.asyncProperty(flips, async (changes) => {
        sample.copy(bytes);
        for (const [at, value] of changes) bytes[at] = value;
        writeFileSync(path, bytes);
        // A busy machine's collector falls behind: the memory of 1,500 models is not what readers take.
        if (++runs % 50 === 0) Bun.gc(true);
        for (const read of READERS) {
          try {
            await read(path);
          } catch (error) {
            if (!(error instanceof ModelDataError || error instanceof ModelNotFoundError)) throw error;
            refused++;
          }
        }
      }),
      { numRuns: 1500 },
    );
    expect(refused).toBeGreaterThan(100);
    expect(spent()).toBeLessThan(120);
    expect(process.memoryUsage.rss() - before).toBeLessThan(2 ** 30);
  },
);
