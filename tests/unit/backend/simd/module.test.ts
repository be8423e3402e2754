import { expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { buildKernels } from "../../../../kernels-wasm/build.ts";

setDefaultTimeout(300_000);

test("kernels.wasm is what its sources make: `bun run build:wasm`", async () => {
  const stored = readFileSync(join(import.meta.dir, "../../../../kernels-wasm/kernels.wasm"));
  expect(stored.equals(await buildKernels())).toBe(true);
});
