import { expect, setDefaultTimeout, test } from "bun:test";
import { cpSync } from "node:fs";
import { join } from "node:path";
import { describeModel } from "../../src/cli/model-diagnosis.ts";
import { LLM } from "../../src/index.ts";
import { inspectModel } from "../../src/llm/inspect-model.ts";
import { temporaryFolder } from "../support.ts";

setDefaultTimeout(300_000);

const EMBEDDED = join(import.meta.dir, "../../models/tiny-stories");

/** The contexts that the line about the CPU names. */
async function contextsOf(path: string): Promise<string | undefined> {
  const lines = describeModel({ path, ...(await inspectModel(path)), fits: [] }, 2 ** 40);
  return lines.find(([title]) => title === "cpu")?.[1].match(/contexts of up to (\d+) tokens/)?.[1];
}

test("contexts that a CPU's KV cache does not hold are named as long as they are", async () => {
  using folder = temporaryFolder();
  cpSync(EMBEDDED, folder.path, { recursive: true });
  const config = folder.file("config.json");
  await Bun.write(
    config,
    JSON.stringify({ ...(await Bun.file(config).json()), max_position_embeddings: 2 ** 18 }),
  );
  await using llm = await LLM.create(folder.path, { device: "cpu", skipTokenizerInit: true, maxNumSeqs: 2 });
  expect(llm.maxModelLen).toBeLessThan(2 ** 18);
  expect(await contextsOf(folder.path)).toBe(String(llm.maxModelLen));
  expect(await contextsOf(EMBEDDED)).toBeUndefined();
});
