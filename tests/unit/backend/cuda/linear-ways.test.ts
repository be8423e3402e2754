import { afterEach, beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import type { CudaBackend } from "../../../../src/backend/cuda/cuda-backend.ts";
import { denseWeight } from "../../../../src/backend/weight.ts";
import { FakeMachine } from "./fake-machine.ts";

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

  test("captures what was tuned without loading or allocating anything", () => {
    tuned();
    const x = backend.empty("bfloat16", [128, INPUTS]);
    const out = backend.empty("bfloat16", [128, OUTPUTS]);
    const weight = denseWeight(backend.empty("bfloat16", [OUTPUTS, INPUTS]));
    machine.cuda.calls.length = 0;
    backend.capture(() => backend.linear(out, x, weight, { addTo: out })).dispose();
    const captured = machine.cuda.calls.slice(1, machine.cuda.calls.indexOf("cuStreamEndCapture"));
    expect(captured.filter((call) => call !== "cuTensorMapEncodeTiled")).toEqual(["cuLaunchKernelEx"]);
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
