import { afterEach, beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import { readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { CudaBackend } from "../../../../src/backend/cuda/cuda-backend.ts";
import { searchedTokens } from "../../../../src/backend/cuda/gemm-shape.ts";
import { denseWeight } from "../../../../src/backend/weight.ts";
import { CublasError, CudaError } from "../../../../src/cuda/errors.ts";
import { heuristicResult } from "../../cuda/fake-cublaslt.ts";
import { FakeMachine } from "./fake-machine.ts";

setDefaultTimeout(300_000);

/** Milliseconds of the algorithms that the fake ranks 1, 2, 3: its first is not its fastest. */
const TIMES: Readonly<Record<number, number>> = { 1: 3, 2: 1, 3: 2 };
/** How many algorithms a search asks for: to rank only, or to time. */
const [RANK, TIME] = [1, 8];

let machine: FakeMachine;
let backend: CudaBackend;

beforeEach(() => {
  machine = new FakeMachine();
  const ranked = Object.keys(TIMES).map((fill) =>
    heuristicResult({ workspaceBytes: 64, fill: Number(fill) }),
  );
  machine.cublas.heuristics = new Uint8Array(Buffer.concat(ranked));
  machine.cuda.elapsed = () => TIMES[machine.cublas.matmuls.at(-1)!.algorithm]!;
  backend = machine.backend();
});

afterEach(() => machine[Symbol.dispose]());

function multiply(tokens: number, { inFeatures = 16, outFeatures = 8, bias = false, addTo = false } = {}) {
  const [x, weight, out] = [
    backend.empty("bfloat16", [tokens, inFeatures]),
    backend.empty("bfloat16", [outFeatures, inFeatures]),
    backend.empty("bfloat16", [tokens, outFeatures]),
  ];
  const added = bias ? backend.empty("bfloat16", [outFeatures]) : undefined;
  backend.linear(out, x, denseWeight(weight), { bias: added, addTo: addTo ? out : undefined });
  for (const tensor of [x, weight, out, added]) tensor?.buffer.dispose();
  return { x, weight, out, added, matmul: machine.cublas.matmuls.at(-1)! };
}

function restart(): void {
  backend.dispose();
  machine.cublas.searches.length = 0;
  backend = machine.backend();
}

describe("plans", () => {
  test("carry shape and addresses, of a bias and a sum too", () => {
    const x = backend.empty("bfloat16", [3, 16]);
    const weight = denseWeight(backend.empty("bfloat16", [8, 16]));
    const [out, other] = [backend.empty("bfloat16", [3, 8]), backend.empty("bfloat16", [3, 8])];
    const [first, second] = [backend.empty("bfloat16", [8]), backend.empty("bfloat16", [8])];
    for (const bias of [first, second, undefined]) {
      for (const addTo of [undefined, out, other]) {
        backend.linear(out, x, weight, { bias, addTo });
        expect(machine.cublas.matmuls.at(-1)).toEqual({
          ...{ x: x.address, weight: weight.data.address, out: out.address },
          ...{ bias: bias?.address, addTo: addTo?.address, algorithm: 1, shape: [3, 16, 8] },
        });
      }
    }
    backend.linear(backend.empty("float32", [3, 8]), x, weight);
    expect(machine.cublas.matmuls.at(-1)).toMatchObject({ bias: undefined, addTo: undefined });
  });

  test("are searched for once a shape", () => {
    for (const tokens of [1, 2, 1, 2, 1]) multiply(tokens);
    multiply(1, { bias: true });
    multiply(1, { addTo: true });
    multiply(1, { bias: true, addTo: true });
    expect(machine.cublas.searches).toEqual(Array(5).fill(RANK));
  });

  test("of many tokens share an algorithm with those of a few more", () => {
    for (let tokens = 900; tokens <= 1000; tokens++) expect(multiply(tokens).matmul.shape[0]).toBe(tokens);
    // 960 and 1024.
    expect(machine.cublas.searches).toEqual([RANK, RANK]);
    expect(new Set(machine.cublas.checks)).toEqual(new Set([1]));
    machine.cublas.unfit.add(1);
    const searches = machine.cublas.searches.length;
    expect(multiply(899).matmul.algorithm).toBe(1);
    expect(machine.cublas.searches).toHaveLength(searches + 1);
  });

  test("take what was timed for a few tokens more", () => {
    multiply(16);
    backend.tuneLinear([16, 32]);
    const searches = machine.cublas.searches.length;
    for (const tokens of [9, 16, 17, 31]) expect(multiply(tokens).matmul.algorithm).toBe(2);
    expect(multiply(33).matmul.algorithm).toBe(1);
    expect(machine.cublas.searches).toHaveLength(searches + 1);
  });

  test("are searched for at no more than an eighth, or 15, above", () => {
    for (let tokens = 1; tokens <= 40_000; tokens++) {
      const searched = searchedTokens(tokens);
      expect(searched).toBeGreaterThanOrEqual(tokens);
      expect(searched - tokens).toBeLessThan(tokens <= 8 ? 1 : Math.max(16, tokens / 8));
    }
    expect(new Set(Array.from({ length: 16384 }, (_, i) => searchedTokens(i + 1))).size).toBeLessThan(80);
  });

  test("are dropped, oldest first, when there are too many", () => {
    for (let tokens = 1; tokens <= 700; tokens++) multiply(tokens);
    expect(machine.cublas.live.size).toBeLessThanOrEqual(512 * 4 + 1);
    const [searches, checks] = [machine.cublas.searches.length, machine.cublas.checks.length];
    multiply(700);
    multiply(700 - 511);
    expect(machine.cublas.checks).toHaveLength(checks);
    multiply(1);
    expect(machine.cublas.checks).toHaveLength(checks + 1);
    expect(machine.cublas.searches).toHaveLength(searches);
  });

  test("that cannot be made leave nothing behind", () => {
    const before = machine.cublas.live.size;
    machine.cublas.status = 15;
    expect(() => multiply(5)).toThrow(CublasError);
    expect(machine.cublas.live.size).toBe(before);
    machine.cublas.status = 0;
    expect(multiply(5).matmul.shape).toEqual([5, 16, 8]);
  });
});

describe("tuning", () => {
  test("finds the fastest algorithm of every weight at every size asked for", () => {
    multiply(1);
    multiply(1, { outFeatures: 24, bias: true });
    const before = machine.cuda.live.size;
    backend.tuneLinear([1, 4]);
    expect(machine.cuda.live.size).toBe(before);
    expect(multiply(1).matmul.algorithm).toBe(2);
    expect(multiply(4, { outFeatures: 24, bias: true }).matmul.algorithm).toBe(2);
    expect(multiply(3).matmul.algorithm).toBe(1);
  });

  test("takes the first in rank of those within 3%, so that starts that time a little differently agree", () => {
    multiply(1);
    const times: Readonly<Record<number, number>> = { 1: 1.04, 2: 1.02, 3: 1 };
    machine.cuda.elapsed = () => times[machine.cublas.matmuls.at(-1)!.algorithm]!;
    backend.tuneLinear([1]);
    expect(multiply(1).matmul.algorithm).toBe(2);
  });

  test("of thousands of tokens is for weights that had as many", () => {
    multiply(1);
    multiply(3000, { outFeatures: 24 });
    machine.cublas.searches.length = 0;
    backend.tuneLinear([3000]);
    expect(machine.cublas.searches).toEqual([TIME]);
    expect(multiply(3000, { outFeatures: 24 }).matmul.algorithm).toBe(2);
    expect(multiply(2990, { outFeatures: 24 }).matmul.algorithm).toBe(1);
  });

  test("cycles through as many weights as overflow the L2 cache", () => {
    const x = backend.empty("bfloat16", [16, 2048]);
    const out = backend.empty("bfloat16", [16, 8192]);
    const weights = [0, 1, 2, 3, 4, 5].map(() => backend.empty("bfloat16", [8192, 2048]));
    for (const weight of weights) backend.linear(out, x, denseWeight(weight));
    machine.cublas.matmuls.length = 0;
    backend.tuneLinear([16]);
    const used = new Set(machine.cublas.matmuls.map(({ weight }) => weight));
    expect(used.size).toBe(Math.ceil((3 * 50) / 32));
  });

  test("adds to memory of its own where the model adds to the residual stream", () => {
    const [x, out] = [backend.empty("bfloat16", [4, 16]), backend.empty("bfloat16", [4, 8])];
    const weight = denseWeight(backend.empty("bfloat16", [8, 16]));
    backend.upload(out, new Uint8Array(64).fill(0x3f));
    backend.linear(out, x, weight, { addTo: out });
    machine.cublas.matmuls.length = 0;
    let zeros = 0;
    machine.cuda.elapsed = () => {
      const last = machine.cublas.matmuls.at(-1)!;
      if (machine.cuda.bytesOf(last.out).every((byte) => byte === 0)) zeros++;
      return TIMES[last.algorithm]!;
    };
    backend.tuneLinear([4]);
    expect(machine.cublas.matmuls).toHaveLength(3);
    for (const { out: target, addTo } of machine.cublas.matmuls) {
      expect(target).not.toBe(out.address);
      expect(addTo).toBe(target);
    }
    expect(zeros).toBeGreaterThanOrEqual(3);
    backend.linear(out, x, weight, { addTo: out });
    expect(machine.cublas.matmuls.at(-1)!.algorithm).toBe(2);
    backend.linear(out, x, weight);
    expect(machine.cublas.matmuls.at(-1)!.algorithm).toBe(1);
  });

  test("skips an algorithm that fails when it runs", () => {
    multiply(1);
    machine.cublas.refused.add(2);
    backend.tuneLinear([1]);
    expect(multiply(1).matmul.algorithm).toBe(3);
  });

  test("leaves cuBLASLt's ranking where every algorithm fails or memory is short", () => {
    multiply(1);
    for (const algorithm of [1, 2, 3]) machine.cublas.refused.add(algorithm);
    backend.tuneLinear([1]);
    machine.cublas.refused.clear();
    expect(multiply(1).matmul.algorithm).toBe(1);
    const held = machine.cuda.live.size;
    machine.cuda.fail("cuMemAlloc_v2", 2);
    machine.cuda.fail("cuMemAlloc_v2", 2, 3);
    backend.tuneLinear([1, 2]);
    expect(machine.cuda.live.size).toBe(held);
    expect(multiply(1).matmul.algorithm).toBe(1);
  });

  test("does not hide that the device is lost", () => {
    multiply(1);
    machine.cuda.fail("cuEventSynchronize", 700);
    expect(() => backend.tuneLinear([1])).toThrow(CudaError);
  });
});

describe("choices on disk", () => {
  const tune = () => {
    multiply(1);
    backend.tuneLinear([1]);
    return multiply(1).matmul.algorithm;
  };
  const timed = () => machine.cublas.searches.includes(TIME);
  const file = () => {
    const [name] = readdirSync(machine.cacheFolder).filter((entry) => entry.startsWith("gemm-"));
    return join(machine.cacheFolder, name!);
  };

  test("spare the next start the timing", () => {
    expect(tune()).toBe(2);
    restart();
    expect(multiply(1).matmul.algorithm).toBe(2);
    expect(machine.cublas.searches).toEqual([]);
    expect(tune()).toBe(2);
    expect(timed()).toBe(false);
  });

  test("do not pass to another cuBLASLt", () => {
    tune();
    machine.cublas.version++;
    restart();
    expect(multiply(1).matmul.algorithm).toBe(1);
    expect(tune()).toBe(2);
    expect(timed()).toBe(true);
  });

  test("do not pass to another GPU", () => {
    tune();
    backend.dispose();
    Object.assign(machine.cuda.gpus[0]!, { name: "Another GPU" });
    restart();
    expect(multiply(1).matmul.algorithm).toBe(1);
  });

  test.each([
    ["cut short", (path: string) => truncateSync(path, 100)],
    ["empty", (path: string) => truncateSync(path, 0)],
    ["of another kind", (path: string) => writeFileSync(path, "null\n{}\n")],
    [
      "altered by a digit",
      (path: string) => {
        const text = readFileSync(path, "utf8");
        const at = text.indexOf('algorithm":"') + 14;
        writeFileSync(path, `${text.slice(0, at)}f${text.slice(at + 1)}`);
      },
    ],
  ])("that are %s are made and kept again", (_name, damage) => {
    tune();
    damage(file());
    restart();
    expect(multiply(1).matmul.algorithm).toBe(1);
    expect(tune()).toBe(2);
    expect(timed()).toBe(true);
    restart();
    tune();
    expect(timed()).toBe(false);
  });

  test("that cannot be written cost nothing", () => {
    rmSync(machine.cacheFolder, { recursive: true, force: true });
    writeFileSync(machine.cacheFolder, "a file where the folder would be");
    expect(tune()).toBe(2);
  });
});
