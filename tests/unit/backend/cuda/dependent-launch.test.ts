import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { KERNEL_FOLDER } from "../../../../src/backend/cuda/kernel-library.ts";
import { SIGNATURES } from "./kernel-signatures.ts";

setDefaultTimeout(300_000);

/** What a kernel's own text says of programmatic dependent launch, in order; see types.cuh. */
function stepsOf(entry: string): string[] {
  const source = readFileSync(join(KERNEL_FOLDER, SIGNATURES.get(entry)!.file), "utf8").replace(
    /\/\/.*/g,
    "",
  );
  const start = source.search(new RegExp(`\\b${entry}\\(`));
  const end = source.indexOf("\n}\n", start);
  return [...source.slice(start, end).matchAll(/GRID_DEPENDENCY_(\w+)\(\)/g)].map(([, step]) => step!);
}

describe("what may be read before the wait", () => {
  test.each([...SIGNATURES])("%s waits for the kernels before it", (entry, { file }) => {
    const headers = readFileSync(join(KERNEL_FOLDER, file), "utf8").matchAll(/#include "(.*)"/g);
    const texts = [...headers].map(([, header]) =>
      readFileSync(join(KERNEL_FOLDER, "include", header!), "utf8"),
    );
    // types.cuh defines it.
    const inHeader = texts.some((text) => /^ .*GRID_DEPENDENCY_WAIT\(\)/m.test(text));
    expect(stepsOf(entry).includes("WAIT") || inHeader).toBe(true);
  });

  test.each(["prepare_batch", "scatter"])(
    "%s publishes what it has written and lets nothing start before",
    (entry) => {
      expect(stepsOf(entry)).toEqual(["WAIT", "PUBLISH"]);
    },
  );

  test("attention_decode lets others start when it has published the cache's new tokens", () => {
    // The first wait is of a CTA without work.
    expect(stepsOf("attention_decode")).toEqual(["WAIT", "WAIT", "PUBLISH", "LAUNCH"]);
  });

  test("rope_store is followed by kernels that wait before they let others start", () => {
    expect(stepsOf("rope_store")).toEqual(["WAIT", "LAUNCH"]);
    expect(stepsOf("attention_prefill")).toEqual(["WAIT", "LAUNCH"]);
    expect(stepsOf("attention_prefill_hopper")).toEqual(["WAIT"]);
  });
});
