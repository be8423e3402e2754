import { describe, expect, setDefaultTimeout, spyOn, test } from "bun:test";
import { MAX_INPUTS } from "../../../../kernels-wasm/layout.ts";
import type { LinearFusion } from "../../../../src/backend/backend.ts";
import { CpuBackend } from "../../../../src/backend/cpu/cpu-backend.ts";
import type { PlacedBuffer } from "../../../../src/backend/simd/place.ts";
import { SimdBackend, type SimdOptions } from "../../../../src/backend/simd/simd-backend.ts";
import { ThreadPool } from "../../../../src/backend/simd/thread-pool.ts";
import { findKernels } from "../../../../src/backend/simd/x64/machine-code.ts";
import { Tensor } from "../../../../src/backend/tensor.ts";
import { denseWeight, type Weight } from "../../../../src/backend/weight.ts";
import { InvariantError } from "../../../../src/base/errors.ts";
import { AttentionStep } from "../../../contract/attention-step.ts";
import { Fixture } from "../../../contract/fixture.ts";
import {
  fp8Weight,
  groupedWeight,
  mxfp4Weight,
  superblockWeight,
} from "../../../contract/quantised-weights.ts";
import { batchTensors, type RaggedBatch, raggedBatch } from "../../../contract/ragged-batch.ts";
import { noKnownNormals } from "../../../contract/random.ts";

setDefaultTimeout(300_000);

const [N, K] = [104, 768];
const MEGABYTE = 2 ** 20;
const KNOWN_NORMALS = noKnownNormals();

const WEIGHTS: Readonly<Record<string, (fixture: Fixture) => Weight>> = {
  float32: (fixture) => denseWeight(fixture.normals([N, K]).tensor),
  bfloat16: (fixture) => denseWeight(fixture.input(fixture.random.normals(N * K), [N, K], "bfloat16").tensor),
  float16: (fixture) => denseWeight(fixture.input(fixture.random.normals(N * K), [N, K], "float16").tensor),
  fp8: (fixture) => fp8Weight(fixture, [N, K], { blockRows: 1, blockColumns: K }).weight,
  int8: (fixture) => groupedWeight(fixture, [N, K], { bits: 8, groupSize: 64, zeros: true }).weight,
  int4: (fixture) => groupedWeight(fixture, [N, K], { bits: 4, groupSize: 128, zeros: true }).weight,
  "int4 in uneven blocks": (fixture) =>
    groupedWeight(fixture, [N, K], { bits: 4, groupSize: 48, permuted: true }).weight,
  "int4 in a group a row": (fixture) =>
    groupedWeight(fixture, [N, K], { bits: 4, groupSize: K, permuted: true }).weight,
  mxfp4: (fixture) => mxfp4Weight(fixture, [N, K]).weight,
  "superblocks of 4 bits": (fixture) =>
    superblockWeight(fixture, [N, K], { bits: 4, groupSize: 32, minima: true }).weight,
  "superblocks of 6 bits in groups of 32": (fixture) =>
    superblockWeight(fixture, [N, K], { bits: 8, groupSize: 32, minima: true }).weight,
  "superblocks of 6 bits": (fixture) =>
    superblockWeight(fixture, [N, K], { bits: 8, groupSize: 16, minima: false }).weight,
  "superblocks of 6 bits with minima": (fixture) =>
    superblockWeight(fixture, [N, K], { bits: 8, groupSize: 16, minima: true }).weight,
};

/** Runs `body` on a backend of its own. */
function on<T>(options: SimdOptions, body: (fixture: Fixture) => T): T {
  const backend = new SimdBackend(options);
  const fixture = new Fixture(backend, KNOWN_NORMALS);
  try {
    return body(fixture);
  } finally {
    fixture.dispose();
    backend.dispose();
  }
}

/** Gives the bytes of products of so many tokens, the same at each call and on each fixture. */
function products(fixture: Fixture, make: (fixture: Fixture) => Weight): (tokens: number) => Buffer {
  fixture.restart();
  const weight = make(fixture);
  const norm = { weight: fixture.normals([K], 0.3, 1).tensor, eps: 1e-6 };
  const x = fixture.normals([160, K]).tensor;
  return (tokens) => {
    const gated = fixture.output("float32", [tokens, N / 2]);
    const activation = { kind: "silu", gated: true } as const;
    fixture.backend.linear(gated, x.rows(0, tokens), weight, { norm, activation });
    return Buffer.from(fixture.backend.download(gated));
  };
}

/** What this machine computes products with, the usual first. */
const KERNELS = (["avx512", "avx2", "wasm"] as const).slice(
  ["avx512", "avx2", "wasm"].indexOf(findKernels()),
);

describe.each(KERNELS)("a product's bits, %s,", (kernels) => {
  for (const [name, make] of Object.entries(WEIGHTS)) {
    test(`by ${name} depend neither on threads nor on other tokens`, async () => {
      const expected = on({ threads: 1, kernels }, (fixture) => products(fixture, make)(160));
      for (const threads of kernels === KERNELS[0] ? [2, 3] : [2]) {
        const backend = new SimdBackend({ threads, kernels });
        expect(backend.kernels).toBe(kernels);
        const fixture = new Fixture(backend, KNOWN_NORMALS);
        const multiply = products(fixture, make);
        for (const [i, tokens] of [160, 1, 2, 3, 67, 160].entries()) {
          const rows = multiply(tokens);
          expect({ threads, tokens, same: rows.equals(expected.subarray(0, rows.length)) }).toEqual({
            threads,
            tokens,
            same: true,
          });
          // Threads start meanwhile.
          if (i < 2) await Bun.sleep(20);
        }
        fixture.dispose();
        backend.dispose();
      }
    });
  }
});

test("products are the same but for rounding whatever computes them", () => {
  for (const [name, make] of Object.entries(WEIGHTS)) {
    const [expected, ...others] = KERNELS.map((kernels) => {
      const bytes = on({ threads: 1, kernels }, (fixture) => products(fixture, make)(11));
      return new Float32Array(Uint8Array.from(bytes).buffer);
    });
    const size = Math.hypot(...expected!);
    for (const found of others) {
      const error = Math.hypot(...found.map((value, i) => value - expected![i]!)) / size;
      expect({ name, error, isSmall: error < 1e-6 }).toEqual({ name, error, isSmall: true });
    }
  }
});

test.each(KERNELS)("rows of the most scales have the reference's products, %s", (kernels) => {
  const [n, k, tokens] = [9, MAX_INPUTS, 2];
  on({ threads: 1, kernels }, (fixture) => {
    for (const { weight, values } of [
      superblockWeight(fixture, [n, k], { bits: 8, groupSize: 16, minima: false }),
      superblockWeight(fixture, [n, k], { bits: 8, groupSize: 16, minima: true }),
      groupedWeight(fixture, [n, k], { bits: 8, groupSize: 16, zeros: true }),
    ]) {
      const x = fixture.normals([tokens, k]);
      const out = fixture.output("float32", [tokens, n]);
      fixture.backend.linear(out, x.tensor, weight);
      for (const [i, found] of fixture.readFloats(out).entries()) {
        const [token, row] = [Math.floor(i / n), i % n];
        let [expected, squares] = [0, 0];
        for (let column = 0; column < k; column++) {
          const term = x.values[token * k + column]! * values[row * k + column]!;
          expected += term;
          squares += term * term;
        }
        expect(Math.abs(found - expected)).toBeLessThan(1e-4 * Math.sqrt(squares));
      }
    }
  });
});

test.each(KERNELS)("attention is the reference's with heads of any size, %s", (kernels) => {
  on({ threads: 1, kernels }, (fixture) => {
    const batch = raggedBatch(
      fixture,
      [
        [70, 9],
        [3, 3],
        [40, 1],
      ],
      16,
    );
    for (const headDim of [16, 40, 80, 112, 256]) {
      const heads = { numHeads: 4, numKvHeads: 2, headDim, rotaryDim: 16, blockSize: 16, headNorm: true };
      const step = new AttentionStep(fixture, batch, { ...heads, window: 37, sinks: true });
      fixture.backend.attend(step.out, step.qkv.tensor, step.cache, batchTensors(fixture, batch), step.spec);
      step.check();
    }
  });
});

test.each(KERNELS)("a query's bits do not depend on the queries after it, %s", (kernels) => {
  on({ threads: 1, kernels }, (fixture) => {
    const { backend } = fixture;
    const [first, count] = [3, 61];
    const batch = raggedBatch(fixture, [[first + count, count]], 16);
    const heads = { numHeads: 4, numKvHeads: 2, headDim: 64, rotaryDim: 32, blockSize: 16, headNorm: true };
    const { out, qkv, cache, spec } = new AttentionStep(fixture, batch, { ...heads, window: 0 });
    backend.attend(out, qkv.tensor, cache, batchTensors(fixture, batch), spec);
    const together = Buffer.from(backend.download(out));
    // Queries were rotated where they are.
    backend.upload(qkv.tensor, Float32Array.from(qkv.values));
    for (let i = 0; i < count; i++) {
      const alone: RaggedBatch = {
        ...batch,
        ...{ rows: [[first + i + 1, 1]], numTokens: 1, cuSeqlensQ: [0, 1] },
        ...{ positions: [first + i], slotMapping: [batch.slotMapping[i]!] },
      };
      const [row, x] = [out.rows(i, i + 1), qkv.tensor.rows(i, i + 1)];
      backend.attend(row, x, cache, batchTensors(fixture, alone), spec);
    }
    expect(together.equals(Buffer.from(backend.download(out)))).toBe(true);
  });
});

test("tensors that one memory does not hold lie in several, and ops on them compute the same", () => {
  const run = (fixture: Fixture) =>
    Object.values(WEIGHTS).map((make) => {
      // Weights, inputs and outputs end up in places of their own.
      fixture.backend.allocate(1.1 * MEGABYTE);
      return products(fixture, make)(67).toString("base64");
    });
  const expected = on({ threads: 1 }, run);
  const places = { threads: 2, placeBytes: 4 * MEGABYTE, sparedBytes: 2 * MEGABYTE - 2 ** 18 };
  expect(on(places, run)).toEqual(expected);
});

test("a tensor that no memory holds is refused by its size, and takes none", () => {
  const places = spyOn(ThreadPool.prototype, "add");
  try {
    on({ threads: 1, placeBytes: 4 * MEGABYTE, sparedBytes: MEGABYTE }, ({ backend }) => {
      for (const megabytes of [3, 8])
        expect(() => backend.allocate(megabytes * MEGABYTE)).toThrow("a tensor takes 2.4 MiB at most");
      expect(places).toHaveBeenCalledTimes(1);
      backend.allocate(2.4 * MEGABYTE);
      backend.allocate(2.4 * MEGABYTE);
      expect(places).toHaveBeenCalledTimes(2);
    });
  } finally {
    places.mockRestore();
  }
});

test("what kernels do not know is left to the reference", () => {
  on({ threads: 1 }, (fixture) => {
    const weight = WEIGHTS["bfloat16"]!(fixture);
    const x = fixture.normals([3, K]).tensor;
    const [out, expected] = [fixture.output("float32", [3, N]), fixture.output("float32", [3, N])];
    // A field that a later version of the interface may have.
    const unknown = { cap: 30 } as unknown as LinearFusion;
    fixture.backend.linear(out, x, weight, unknown);
    fixture.backend.linear(expected, x, weight);
    const [reference, kernels] = [fixture.readFloats(out), fixture.readFloats(expected)];
    // Sums of another order.
    expect(Buffer.from(reference.buffer).equals(Buffer.from(kernels.buffer))).toBe(false);
    for (const [i, value] of reference.entries()) expect(kernels[i]).toBeCloseTo(value, 3);
  });
});

/** [tokens, H] of experts of 4-bit floats, as gpt-oss has them. */
function expertRows(fixture: Fixture, tokens: number): Buffer {
  fixture.restart();
  const [count, hidden, intermediate] = [4, 64, 32];
  const weights = {
    count,
    gateUp: mxfp4Weight(fixture, [count * 2 * intermediate, hidden]).weight,
    down: mxfp4Weight(fixture, [count * hidden, intermediate]).weight,
    gateUpBias: fixture.normals([count * 2 * intermediate]).tensor,
  };
  const rows = (width: number) => fixture.normals([12, width]).tensor.rows(0, tokens);
  const [x, logits, out] = [rows(hidden), rows(count), fixture.output("float32", [tokens, hidden])];
  const activation = { kind: "limited_swiglu", alpha: 1.702, limit: 1 } as const;
  const spec = { perToken: 2, softmaxOver: "chosen", activation } as const;
  fixture.backend.experts(out, x, logits, weights, spec, { addTo: x });
  return Buffer.from(fixture.backend.download(out));
}

test("experts have the same bits on any number of threads, of one token and of many", () => {
  const expected = on({ threads: 1 }, (fixture) => expertRows(fixture, 12));
  for (const threads of [1, 2]) {
    for (const tokens of [1, 3, 12]) {
      const rows = on({ threads }, (fixture) => expertRows(fixture, tokens));
      expect(rows.equals(expected.subarray(0, rows.length))).toBe(true);
    }
  }
});

test("norms, caps and experts are the kernels', whatever the family of models", () => {
  const reference = (["rmsNorm", "layerNorm", "capLogits", "experts", "attend", "linear"] as const).map(
    (op) => spyOn(CpuBackend.prototype, op),
  );
  try {
    on({ threads: 1 }, (fixture) => {
      const { backend } = fixture;
      const [x, weight] = [fixture.normals([3, K]).tensor, fixture.normals([K]).tensor];
      const out = fixture.output("float32", [3, K]);
      backend.rmsNorm(out, x, weight, 1e-6, x);
      backend.layerNorm(out, x, weight, weight, 1e-6);
      backend.capLogits(out, 30);
      expertRows(fixture, 3);
      for (const make of Object.values(WEIGHTS)) products(fixture, make)(3);
      const batch = raggedBatch(fixture, [[40, 3]], 16);
      const heads = { numHeads: 4, numKvHeads: 2, headDim: 64, rotaryDim: 32, blockSize: 16, headNorm: true };
      const form = { softCap: 2, sinks: true, queryScales: true, window: 9 };
      const step = new AttentionStep(fixture, batch, { ...heads, ...form });
      backend.attend(step.out, step.qkv.tensor, step.cache, batchTensors(fixture, batch), step.spec);
      step.check();
    });
    for (const op of reference) expect(op).not.toHaveBeenCalled();
  } finally {
    for (const op of reference) op.mockRestore();
  }
});

test.if(process.platform === "linux")("memory goes back to the system when a backend is disposed", () => {
  const own = new SimdBackend({ threads: 1, placeBytes: 2 ** 26, sparedBytes: 2 ** 20 });
  const sizes = [2 ** 25, 2 ** 25];
  const bytes = sizes.map((size) => {
    const { host, address } = own.allocate(size) as PlacedBuffer;
    return new Uint8Array(host, address, size).fill(1);
  });
  own.dispose();
  // Pages that nobody has used since hold zeros.
  for (const each of bytes) expect(each.indexOf(1)).toBe(-1);
});

test("memory that is gone is not used, and a backend that is disposed gives none and computes nothing", () => {
  const backend = new SimdBackend({ threads: 2 });
  const [x, weight] = [backend.empty("float32", [2, 16]), denseWeight(backend.empty("float32", [16, 16]))];
  const out = backend.empty("float32", [2, 16]);
  backend.linear(out, x, weight);
  const tensor = backend.empty("float32", [4]);
  tensor.buffer.dispose();
  expect(() => backend.upload(tensor, new Float32Array(4))).toThrow(InvariantError);
  backend.dispose();
  backend.dispose();
  expect(() => backend.allocate(4)).toThrow(InvariantError);
  // As it was before, and another.
  for (const rows of [2, 1])
    expect(() => backend.linear(out.rows(0, rows), x.rows(0, rows), weight)).toThrow(InvariantError);
  expect(new Tensor(tensor.buffer, "float32", [4]).address).toBe(tensor.address);
});
