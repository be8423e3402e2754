import { type Pointer, toArrayBuffer } from "bun:ffi";
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { Context } from "../../../src/cuda/context.ts";
import { CublasLt, type MatmulAlgorithm, parseHeuristicResults } from "../../../src/cuda/cublaslt.ts";
import type { CublasLtApi } from "../../../src/cuda/cublaslt-symbols.ts";
import { Device } from "../../../src/cuda/device.ts";
import { CublasError } from "../../../src/cuda/errors.ts";
import type { Address } from "../../../src/cuda/ffi.ts";
import { LinearMatmul, type LinearShape } from "../../../src/cuda/linear-matmul.ts";
import { DeviceMemory } from "../../../src/cuda/memory.ts";
import { Stream } from "../../../src/cuda/stream.ts";
import { FakeCuda } from "./fake-cuda.ts";

type Layout = { type: number; rows: number; columns: number; ld: number };

/** cuBLASLt on float32 host memory, by the textbook: column-major, D = α · op(A) · op(B) + β · C + bias. */
class FakeCublasLt {
  readonly live = new Map<number, Layout | Map<number, number>>();
  readonly preferences: Map<number, number>[] = [];
  status = 0;
  heuristics: Uint8Array = heuristicResult({ workspaceBytes: 64 });
  #next = 0x1000;

  readonly api: CublasLtApi = {
    cublasLtGetVersion: () => 130401n,
    cublasLtGetStatusName: (status) => `FAKE_STATUS_${status}`,
    cublasLtCreate: (out) => this.#make(out, new Map()),
    cublasLtDestroy: (handle) => this.#drop(handle),
    cublasLtMatmulDescCreate: (out) => this.#make(out, new Map()),
    cublasLtMatmulDescDestroy: (handle) => this.#drop(handle),
    cublasLtMatmulDescSetAttribute: (handle, attribute, value, bytes) =>
      this.#setAttribute(handle, attribute, value, bytes),
    cublasLtMatrixLayoutCreate: (out, type, rows, columns, ld) =>
      this.#make(out, { type, rows, columns, ld }),
    cublasLtMatrixLayoutDestroy: (handle) => this.#drop(handle),
    cublasLtMatmulPreferenceCreate: (out) => {
      this.preferences.push(new Map());
      return this.#make(out, this.preferences.at(-1)!);
    },
    cublasLtMatmulPreferenceDestroy: (handle) => this.#drop(handle),
    cublasLtMatmulPreferenceSetAttribute: (handle, attribute, value, bytes) =>
      this.#setAttribute(handle, attribute, value, bytes),
    cublasLtMatmulAlgoGetHeuristic: (...args) => {
      if (this.status !== 0) return this.status;
      (args[8] as Uint8Array).set(this.heuristics);
      (args[9] as Int32Array)[0] = this.heuristics.length / 96;
      return 0;
    },
    cublasLtMatmul: (_handle, desc, alpha, a, aLayout, b, bLayout, beta, c, cLayout, d, dLayout) => {
      if (this.status !== 0) return this.status;
      const attributes = this.#of(desc) as Map<number, number>;
      const read = this.#matrix(a, aLayout, attributes.get(3) === 1);
      const right = this.#matrix(b, bLayout, attributes.get(4) === 1);
      const addend = this.#matrix(c, cLayout, false);
      const out = this.#matrix(d, dLayout, false);
      const bias = attributes.get(7) === 4 ? floats(attributes.get(8)!, out.rows) : undefined;
      const [scale, keep] = [(alpha as Float32Array)[0]!, (beta as Float32Array)[0]!];
      for (let row = 0; row < out.rows; row++) {
        for (let column = 0; column < out.columns; column++) {
          let sum = 0;
          for (let k = 0; k < read.columns; k++) sum += read.get(row, k) * right.get(k, column);
          const kept = keep === 0 ? 0 : keep * addend.get(row, column);
          out.set(row, column, scale * sum + kept + (bias?.[row] ?? 0));
        }
      }
      return 0;
    },
  };

  #make(out: Address, value: Layout | Map<number, number>): number {
    this.#next += 8;
    (out as BigUint64Array)[0] = BigInt(this.#next);
    this.live.set(this.#next, value);
    return 0;
  }

  #drop(handle: Address): number {
    return this.live.delete(handle as number) ? 0 : 7;
  }

  #of(handle: Address) {
    return this.live.get(handle as number)!;
  }

  #setAttribute(handle: Address, attribute: number, value: Address, bytes: number): number {
    const array = value as Int32Array | BigUint64Array;
    if (array.byteLength !== bytes) return 7;
    (this.#of(handle) as Map<number, number>).set(attribute, Number(array[0]));
    return 0;
  }

  #matrix(address: number, handle: Address, transposed: boolean) {
    const { rows, columns, ld } = this.#of(handle) as Layout;
    const values = floats(address, ld * columns);
    const at = (row: number, column: number) => (transposed ? row * ld + column : column * ld + row);
    return {
      rows: transposed ? columns : rows,
      columns: transposed ? rows : columns,
      get: (row: number, column: number) => values[at(row, column)]!,
      set: (row: number, column: number, value: number) => {
        values[at(row, column)] = value;
      },
    };
  }
}

function floats(address: number, count: number): Float32Array {
  return new Float32Array(toArrayBuffer(address as Pointer, 0, count * 4));
}

function heuristicResult({ workspaceBytes = 0, state = 0, waves = 1, fill = 7 }): Uint8Array {
  const bytes = new Uint8Array(96).fill(fill, 0, 64);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(64, BigInt(workspaceBytes), true);
  view.setInt32(72, state, true);
  view.setFloat32(76, waves, true);
  return bytes;
}

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

test.each([
  [false, false],
  [true, false],
  [false, true],
  [true, true],
])("out = x · weightᵀ, row-major; bias %p, accumulate %p", (withBias, accumulate) => {
  const x = ramp(12, 2);
  const weight = ramp(20, 3);
  const bias = ramp(5, 5);
  const before = ramp(15, 4);
  const out = upload(before);
  const matmul = new LinearMatmul(cublas, { ...SHAPE, bias: withBias });
  const [algorithm] = matmul.algorithms(4, 1024);
  const stream = Stream.create(context).value;
  matmul.run(stream, algorithm!, out, upload(x), upload(weight), 0, withBias ? upload(bias) : 0, accumulate);
  for (let t = 0; t < 3; t++) {
    for (let n = 0; n < 5; n++) {
      let expected = (withBias ? bias[n]! : 0) + (accumulate ? before[t * 5 + n]! : 0);
      for (let k = 0; k < 4; k++) expected += x[t * 4 + k]! * weight[n * 4 + k]!;
      expect(floats(out, 15)[t * 5 + n]).toBeCloseTo(expected, 5);
    }
  }
});

describe("heuristics", () => {
  test("are read from 96-byte structs; entries that failed are skipped", () => {
    const results = new Uint8Array(4 * 96);
    results.set(heuristicResult({ workspaceBytes: 2 ** 33, waves: 0.5, fill: 1 }), 0);
    results.set(heuristicResult({ state: 15 }), 96);
    results.set(heuristicResult({ workspaceBytes: 3, waves: 2, fill: 9 }), 192);
    const algorithms = parseHeuristicResults(results, 3);
    const summary = (a: MatmulAlgorithm) => [
      a.workspaceBytes,
      a.waves,
      [...new Set(a.bytes)],
      a.bytes.length,
    ];
    expect(algorithms.map(summary)).toEqual([
      [2 ** 33, 0.5, [1], 64],
      [3, 2, [9], 64],
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
  expect(() => matmul.run(1, algorithm!, 1, 1, 1, 0)).toThrow(
    "cublasLtMatmul failed for float32[3, 5] = float32[3, 4] · [5, 4]ᵀ: FAKE_STATUS_13 (13)",
  );
});
