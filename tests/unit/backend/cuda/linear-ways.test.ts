import { afterEach, beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { CudaBackend } from "../../../../src/backend/cuda/cuda-backend.ts";
import { denseWeight } from "../../../../src/backend/weight.ts";
import { FakeMachine } from "./fake-machine.ts";
import { FakeTensors } from "./fake-tensors.ts";
import { namedArguments } from "./kernel-signatures.ts";

setDefaultTimeout(300_000);

const [INPUTS, OUTPUTS] = [1024, 1024];
/** Splits of the ways of a sum of 128 tokens, in their order, and what stands for cuBLASLt. */
const [FIRST, SECOND, COMPOSED] = [4, 2, 0];

let machine: FakeMachine;
let backend: CudaBackend;
/** Milliseconds by splits; a timing is of what was launched last. */
let times: Record<number, number>;

beforeEach(() => {
  machine = new FakeMachine();
  backend = machine.backend();
  times = { [FIRST]: 1, [SECOND]: 1, [COMPOSED]: 1 };
  seen = 0;
  machine.cuda.elapsed = () => times[last()]!;
});

afterEach(() => machine[Symbol.dispose]());

/** Launches when `last` was asked before. */
let seen = 0;

/** Splits of what was launched last, if anything since then; else `COMPOSED`: a sum in cuBLASLt launches no kernel. */
function last(): number {
  const { launches } = machine.cuda;
  const way = launches.length > seen ? launches.at(-1)!.grid[2]! : COMPOSED;
  seen = launches.length;
  return way;
}

function multiply(tokens: number): number {
  const x = backend.empty("bfloat16", [tokens, INPUTS]);
  const out = backend.empty("bfloat16", [tokens, OUTPUTS]);
  const weight = backend.empty("bfloat16", [OUTPUTS, INPUTS]);
  last();
  backend.linear(out, x, denseWeight(weight), { addTo: out });
  return last();
}

/** The choice at 128 tokens once it has been timed. */
function tuned(): number {
  multiply(128);
  backend.tuneLinear([128]);
  return multiply(128);
}

/** Token counts for which a tuning at these times the kernels, in order. */
function timedCounts(tokenCounts: readonly number[]): number[] {
  machine.cuda.launches.length = seen = 0;
  backend.tuneLinear(tokenCounts);
  const counts = machine.cuda.launches.map((launch) => namedArguments(launch)["tokens"]!);
  return [...new Set(counts)].sort((a, b) => a - b);
}

/** Starts anew, on a disk that keeps this way for every choice. */
function restartWith(way: string): void {
  backend.dispose();
  const file = readdirSync(machine.cacheFolder).find((name) => name.startsWith("gemm-"))!;
  const path = join(machine.cacheFolder, file);
  const kept: Record<string, unknown> = JSON.parse(readFileSync(path, "utf8").split("\n")[1]!);
  for (const name of Object.keys(kept)) if (name.startsWith("linear/")) kept[name] = way;
  const text = JSON.stringify(kept);
  writeFileSync(path, `${new Bun.CryptoHasher("sha256").update(text).digest("hex")}\n${text}`);
  backend = machine.backend();
}

describe("a product of up to 256 tokens on Hopper", () => {
  test("goes the way that is ranked first until it is tuned", () => {
    expect(multiply(128)).toBe(FIRST);
    expect(multiply(256)).toBe(SECOND);
    expect(multiply(257)).toBe(COMPOSED);
  });

  test.each([
    ["the fastest", { [SECOND]: 0.9 }, SECOND],
    ["the first that is as good as the fastest", { [SECOND]: 0.98 }, FIRST],
    ["cuBLASLt, where that is fastest", { [COMPOSED]: 0.5 }, COMPOSED],
  ])("goes %s when it is", (_, changes, way) => {
    Object.assign(times, changes);
    expect(tuned()).toBe(way);
    // Fewer tokens go the way of the next count that was timed.
    expect(multiply(90)).toBe(way);
  });

  test("is compared with cuBLASLt at its best, though cuBLASLt has not computed it before", () => {
    multiply(64);
    expect(machine.cublas.matmuls).toEqual([]);
    backend.tuneLinear([128]);
    // A search for all that are timed, not for the likely fastest.
    expect(machine.cublas.searches).toEqual([8]);
    expect(new Set(machine.cublas.matmuls.map(({ shape }) => shape.join()))).toEqual(
      new Set(["128,1024,1024"]),
    );
  });

  test("is timed once: the next start knows, unless it is on another GPU", () => {
    times[SECOND] = 0.5;
    tuned();
    times[SECOND] = 2;
    backend.dispose();
    backend = machine.backend();
    expect(tuned()).toBe(SECOND);
    backend.dispose();
    Object.assign(machine.cuda.gpus[0]!, { name: "Another GPU" });
    backend = machine.backend();
    expect(tuned()).toBe(FIRST);
  });

  test("is timed at more tokens than one kernel takes for few, and at no more than 256", () => {
    multiply(64);
    expect(timedCounts([1, 8, 9, 64, 256, 257, 1000])).toEqual([9, 64, 256]);
    expect(timedCounts([8, 64, 128, 1000])).toEqual([128]);
  });

  test("goes the way of the least count that was timed and is no less, at whichever call", () => {
    const counts = [40, 70, 100, 128, 250];
    expect(counts.map(multiply)).toEqual([FIRST, FIRST, FIRST, FIRST, SECOND]);
    // At 64 tokens both ways have as many splits.
    Object.assign(times, { [SECOND]: 0.5, [COMPOSED]: 0.9 });
    backend.tuneLinear([128, 64]);
    expect(counts.map(multiply)).toEqual([COMPOSED, SECOND, SECOND, SECOND, SECOND]);
    times[COMPOSED] = 0.1;
    backend.tuneLinear([96]);
    expect(counts.map(multiply)).toEqual([COMPOSED, COMPOSED, SECOND, SECOND, SECOND]);
  });

  test("is timed again where the choice that was kept is no way any more", () => {
    times[SECOND] = 0.5;
    tuned();
    restartWith("1.128.1.1.3.2.1.0");
    multiply(128);
    expect(timedCounts([128])).toEqual([128]);
    expect(multiply(128)).toBe(SECOND);
    restartWith("1.128.1.1.4.2.1.0");
    multiply(128);
    expect(timedCounts([128])).toEqual([]);
    expect(multiply(128)).toBe(FIRST);
  });

  test.each([
    ["now", false],
    ["at an earlier start", true],
  ])("captures what was tuned %s without loading or allocating anything", (_, earlier) => {
    const tune = () => {
      multiply(64);
      backend.tuneLinear([96, 128]);
    };
    tune();
    if (earlier) {
      backend.dispose();
      backend = machine.backend();
      tune();
    }
    for (const tokens of [96, 128]) {
      const x = backend.empty("bfloat16", [tokens, INPUTS]);
      const out = backend.empty("bfloat16", [tokens, OUTPUTS]);
      const weight = denseWeight(backend.empty("bfloat16", [OUTPUTS, INPUTS]));
      machine.cuda.calls.length = 0;
      backend.capture(() => backend.linear(out, x, weight, { addTo: out })).dispose();
      const captured = machine.cuda.calls.slice(1, machine.cuda.calls.indexOf("cuStreamEndCapture"));
      const ofHost = ["cuTensorMapEncodeTiled", "cuFuncSetAttribute"];
      expect(captured.filter((call) => !ofHost.includes(call))).toEqual(["cuLaunchKernelEx"]);
    }
  });
});

describe("batch invariance", () => {
  test("is one kernel and one order of sums for all token counts", () => {
    backend.dispose();
    backend = machine.backend("bfloat16", { batchInvariant: true });
    const kernels = [1, 8, 64, 256, 1000].map((tokens) => {
      machine.cuda.launches.length = seen = 0;
      multiply(tokens);
      const [{ entry, grid, sharedBytes }] = machine.cuda.launches as [(typeof machine.cuda.launches)[0]];
      expect(grid[1]).toBe(Math.ceil(tokens / 64));
      return { entry, rows: grid[0], splits: grid[2], sharedBytes };
    });
    expect(new Set(kernels.map((kernel) => JSON.stringify(kernel))).size).toBe(1);
    expect(kernels[0]).toMatchObject({ entry: "linear_wgmma", rows: 16, splits: 4 });
  });

  test("has the norm in the kernel, and nothing is timed", () => {
    backend.dispose();
    backend = machine.backend("bfloat16", { batchInvariant: true });
    const { bf16 } = new FakeTensors();
    const weight = denseWeight(bf16(OUTPUTS, INPUTS));
    const norm = { weight: bf16(INPUTS), eps: 1e-6 };
    for (const tokens of [1, 64, 256]) {
      machine.cuda.launches.length = 0;
      backend.linear(bf16(tokens, OUTPUTS), bf16(tokens, INPUTS), weight, { norm });
      expect(machine.cuda.launches.map(({ entry }) => entry)).toEqual(["linear_wgmma"]);
      expect(namedArguments(machine.cuda.launches[0]!)).toMatchObject({ gamma: norm.weight.address });
    }
    expect(timedCounts([64, 256])).toEqual([]);
  });

  test("is slices of 64 tokens where cuBLASLt multiplies", () => {
    backend.dispose();
    backend = machine.backend("bfloat16", { batchInvariant: true });
    const x = backend.empty("bfloat16", [130, 40]);
    const out = backend.empty("bfloat16", [130, 24]);
    const weight = denseWeight(backend.empty("bfloat16", [24, 40]));
    machine.cublas.matmuls.length = 0;
    backend.linear(out, x, weight, { addTo: out });
    const [first, second, rest] = machine.cublas.matmuls;
    for (const product of [first, second, rest]) expect(product!.shape).toEqual([64, 40, 24]);
    expect(first).toMatchObject({ out: out.address, x: x.address, addTo: out.address });
    expect(second).toMatchObject({ out: out.address + 64 * 48, x: x.address + 64 * 80 });
    expect(machine.cuda.bytesOf(rest!.out).length).toBeGreaterThanOrEqual(64 * 48);
    expect(rest!.addTo).toBe(rest!.out);
    expect(rest!.out).not.toBe(out.address + 128 * 48);
  });
});
