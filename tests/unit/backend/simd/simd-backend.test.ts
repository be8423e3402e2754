import { describe, expect, setDefaultTimeout, test } from "bun:test";
import type { LinearFusion } from "../../../../src/backend/backend.ts";
import { SimdBackend, type SimdOptions } from "../../../../src/backend/simd/simd-backend.ts";
import { Tensor } from "../../../../src/backend/tensor.ts";
import { denseWeight, type Weight } from "../../../../src/backend/weight.ts";
import { DeviceError, InvariantError } from "../../../../src/base/errors.ts";
import { Fixture } from "../../../contract/fixture.ts";
import { fp8Weight, groupedWeight } from "../../../contract/quantised-weights.ts";

setDefaultTimeout(300_000);

const [N, K] = [104, 384];
const MEGABYTE = 2 ** 20;

const WEIGHTS: Readonly<Record<string, (fixture: Fixture) => Weight>> = {
  float32: (fixture) => denseWeight(fixture.normals([N, K]).tensor),
  bfloat16: (fixture) => denseWeight(fixture.input(fixture.random.normals(N * K), [N, K], "bfloat16").tensor),
  float16: (fixture) => denseWeight(fixture.input(fixture.random.normals(N * K), [N, K], "float16").tensor),
  fp8: (fixture) => fp8Weight(fixture, [N, K], { blockRows: 1, blockColumns: K }).weight,
  int8: (fixture) => groupedWeight(fixture, [N, K], { bits: 8, groupSize: 64, zeros: true }).weight,
  int4: (fixture) => groupedWeight(fixture, [N, K], { bits: 4, groupSize: 128, zeros: true }).weight,
  "int4 in uneven blocks": (fixture) =>
    groupedWeight(fixture, [N, K], { bits: 4, groupSize: 48, permuted: true }).weight,
};

/** Runs `body` on a backend of its own. */
function on<T>(options: SimdOptions, body: (fixture: Fixture) => T): T {
  const backend = new SimdBackend(options);
  const fixture = new Fixture(backend);
  try {
    return body(fixture);
  } finally {
    fixture.dispose();
    backend.dispose();
  }
}

/** The bytes of products of `tokens` tokens, the same at each call. */
function products(fixture: Fixture, make: (fixture: Fixture) => Weight, tokens: number): Buffer {
  fixture.restart();
  const weight = make(fixture);
  const norm = { weight: fixture.normals([K], 0.3, 1).tensor, eps: 1e-6 };
  const x = fixture.normals([160, K]).tensor.rows(0, tokens);
  const gated = fixture.output("float32", [tokens, N / 2]);
  fixture.backend.linear(gated, x, weight, { norm, activation: { kind: "silu", gated: true } });
  return Buffer.from(fixture.backend.download(gated));
}

describe("a product's bits", () => {
  for (const [name, make] of Object.entries(WEIGHTS)) {
    test(`by ${name} depend neither on threads nor on other tokens`, async () => {
      const expected = on({ threads: 1 }, (fixture) => products(fixture, make, 160));
      for (const threads of [2, 3]) {
        const backend = new SimdBackend({ threads });
        const fixture = new Fixture(backend);
        for (const tokens of [160, 1, 2, 3, 67]) {
          const rows = products(fixture, make, tokens);
          expect({ threads, tokens, same: rows.equals(expected.subarray(0, rows.length)) }).toEqual({
            threads,
            tokens,
            same: true,
          });
          // Threads start meanwhile.
          await Bun.sleep(20);
        }
        fixture.dispose();
        backend.dispose();
      }
    });
  }
});

test("tensors that one memory does not hold lie in several, and ops on them compute the same", () => {
  const run = (fixture: Fixture) =>
    Object.values(WEIGHTS).map((make) => {
      // Weights, inputs and outputs end up in places of their own.
      fixture.backend.allocate(1.1 * MEGABYTE);
      return products(fixture, make, 67).toString("base64");
    });
  const expected = on({ threads: 1 }, run);
  const places = { threads: 2, placeBytes: 4 * MEGABYTE, sparedBytes: 2 * MEGABYTE - 2 ** 18 };
  expect(on(places, run)).toEqual(expected);
});

test("a tensor that no memory holds is refused by its size", () => {
  on({ threads: 1, placeBytes: 4 * MEGABYTE, sparedBytes: MEGABYTE }, ({ backend }) => {
    expect(() => backend.allocate(8 * MEGABYTE)).toThrow(DeviceError);
    backend.allocate(2 * MEGABYTE);
  });
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

test("memory that is gone is not used, and a backend that is disposed gives none", () => {
  const backend = new SimdBackend({ threads: 2 });
  const tensor = backend.empty("float32", [4]);
  tensor.buffer.dispose();
  expect(() => backend.upload(tensor, new Float32Array(4))).toThrow(InvariantError);
  backend.dispose();
  backend.dispose();
  expect(() => backend.allocate(4)).toThrow(InvariantError);
  expect(new Tensor(tensor.buffer, "float32", [4]).address).toBe(tensor.address);
});
