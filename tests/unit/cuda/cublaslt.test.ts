import { type Pointer, toArrayBuffer } from "bun:ffi";
import { afterEach, beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import { InvariantError } from "../../../src/base/errors.ts";
import { Context } from "../../../src/cuda/context.ts";
import { CublasLt, type MatmulAlgorithm, parseHeuristicResults } from "../../../src/cuda/cublaslt.ts";
import { Device } from "../../../src/cuda/device.ts";
import { CublasError } from "../../../src/cuda/errors.ts";
import { LinearMatmul, type LinearShape } from "../../../src/cuda/linear-matmul.ts";
import { DeviceMemory } from "../../../src/cuda/memory.ts";
import { Stream } from "../../../src/cuda/stream.ts";
import { FakeCublasLt, floats, heuristicResult } from "./fake-cublaslt.ts";
import { FakeCuda } from "./fake-cuda.ts";

setDefaultTimeout(300_000);

let fake: FakeCublasLt;
let context: Context;
let cublas: CublasLt;

beforeEach(() => {
  const cuda = new FakeCuda();
  fake = new FakeCublasLt();
  context = Context.retain(cuda.api, Device.open(cuda.api, 0));
  cublas = CublasLt.create(fake.api, context);
});

afterEach(() => {
  context.dispose();
  expect(fake.live.size).toBe(0);
});

const SHAPE: LinearShape = {
  tokens: 3,
  inFeatures: 4,
  outFeatures: 5,
  inputType: "float32",
  outputType: "float32",
};

function upload(values: Float32Array): number {
  const memory = DeviceMemory.allocate(context, values.byteLength);
  Stream.create(context).upload(memory.value, values, values.byteLength);
  return memory.value;
}

const ramp = (count: number, step: number) =>
  Float32Array.from({ length: count }, (_, i) => ((i * step) % 7) - 3);

describe.each([false, true])("bias %p", (withBias) => {
  test.each(["none", "another matrix", "out"])("out = x · weightᵀ, row-major; adds to: %s", (addsTo) => {
    const x = ramp(12, 2);
    const weight = ramp(20, 3);
    const bias = ramp(5, 5);
    const before = ramp(15, 4);
    const out = upload(before);
    const added = ramp(15, 6);
    const addTo = addsTo === "out" ? out : upload(added);
    using matmul = new LinearMatmul(cublas, { ...SHAPE, bias: withBias, addTo: addsTo !== "none" });
    const [algorithm] = matmul.algorithms(4, 1024);
    const operands = { out, x: upload(x), weight: upload(weight), bias: upload(bias), addTo };
    matmul.run(Stream.create(context).value, algorithm!, 0, operands);
    for (let t = 0; t < 3; t++) {
      for (let n = 0; n < 5; n++) {
        const at = t * 5 + n;
        let expected = withBias ? bias[n]! : 0;
        if (addsTo !== "none") expected += addsTo === "out" ? before[at]! : added[at]!;
        for (let k = 0; k < 4; k++) expected += x[t * 4 + k]! * weight[n * 4 + k]!;
        expect(floats(out, 15)[at]).toBeCloseTo(expected, 5);
      }
    }
  });
});

test("a matmul without an operand that its shape has is refused", () => {
  for (const part of ["bias", "addTo"]) {
    using matmul = new LinearMatmul(cublas, { ...SHAPE, [part]: true });
    const [algorithm] = matmul.algorithms(1, 0);
    expect(() => matmul.run(1, algorithm!, 0, { out: 1, x: 1, weight: 1 })).toThrow(InvariantError);
  }
});

describe("heuristics", () => {
  test("are read from 96-byte structs; entries that failed are skipped", () => {
    const results = new Uint8Array(4 * 96);
    results.set(heuristicResult({ workspaceBytes: 2 ** 33, fill: 1 }), 0);
    results.set(heuristicResult({ state: 15 }), 96);
    results.set(heuristicResult({ workspaceBytes: 3, fill: 9 }), 192);
    const algorithms = parseHeuristicResults(results, 3);
    const summary = (a: MatmulAlgorithm) => [a.workspaceBytes, [...new Set(a.bytes)], a.bytes.length];
    expect(algorithms.map(summary)).toEqual([
      [2 ** 33, [1], 64],
      [3, [9], 64],
    ]);
    const raw = new Uint8Array(toArrayBuffer(algorithms[1]!.address as Pointer, 0, 64));
    expect([...raw]).toEqual([...algorithms[1]!.bytes]);
  });

  test("are asked with the workspace and the alignment of all four matrices", () => {
    using matmul = new LinearMatmul(cublas, SHAPE);
    matmul.algorithms(1, 2 ** 32, 32);
    const asked = Object.fromEntries(fake.preferences.at(-1)!);
    expect(asked).toEqual({ 1: 2 ** 32, 5: 32, 6: 32, 7: 32, 8: 32 });
  });

  test("none is an error that names the shape", () => {
    using matmul = new LinearMatmul(cublas, { ...SHAPE, inputType: "bfloat16" });
    fake.status = 15;
    expect(() => matmul.algorithms(1, 0)).toThrow("float32[3, 5] = bfloat16[3, 4] · [5, 4]ᵀ");
    fake.status = 0;
    fake.heuristics = new Uint8Array(0);
    expect(() => matmul.algorithms(1, 0)).toThrow(CublasError);
  });
});

test("a matmul that fails carries call, status and shape", () => {
  using matmul = new LinearMatmul(cublas, SHAPE);
  const [algorithm] = matmul.algorithms(1, 0);
  fake.status = 13;
  expect(() => matmul.run(1, algorithm!, 0, { out: 1, x: 1, weight: 1 })).toThrow(
    "cublasLtMatmul failed for float32[3, 5] = float32[3, 4] · [5, 4]ᵀ: FAKE_STATUS_13 (13)",
  );
});
