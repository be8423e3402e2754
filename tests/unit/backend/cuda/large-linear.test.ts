import { afterAll, expect, setDefaultTimeout, test } from "bun:test";
import type { LinearFusion } from "../../../../src/backend/backend.ts";
import { Tensor } from "../../../../src/backend/tensor.ts";
import { denseWeight } from "../../../../src/backend/weight.ts";
import { FakeMachine } from "./fake-machine.ts";
import { FakeTensors } from "./fake-tensors.ts";
import { namedArguments } from "./kernel-signatures.ts";
import { HOPPER_SHARED_BYTES, LaunchRecorder } from "./launch-recorder.ts";

setDefaultTimeout(300_000);

const SILU = { kind: "silu", gated: true } as const;

const recorder = new LaunchRecorder();
afterAll(() => recorder[Symbol.dispose]());
const { machine, backend, requested } = recorder;
const tensors = new FakeTensors();

/** A tensor at an address of its own that nothing is behind, in a buffer of `rows` rows. */
function bf16(tokens: number, width: number, rows = tokens): Tensor {
  return tensors.of("bfloat16", rows, width).rows(0, tokens);
}

function launches(run: () => void) {
  const before = machine.cublas.matmuls.length;
  const own = recorder.launches(run);
  return { own, products: machine.cublas.matmuls.length - before };
}

/** What a product of [rows, inputs] launches, and whether cuBLASLt had a part in it. */
function product(tokens: number, rows: number, inputs: number, fusion: LinearFusion = { activation: SILU }) {
  const width = fusion.activation?.gated ? rows / 2 : rows;
  const [x, out] = [bf16(tokens, inputs), bf16(tokens, width)];
  const { own, products } = launches(() => backend.linear(out, x, denseWeight(bf16(rows, inputs)), fusion));
  return { entries: own.map(({ entry }) => entry), own, products };
}

test("many tokens: a norm, then product and gated activation in one kernel of clusters of two", () => {
  const [x, out, bias] = [bf16(4096, 1024), bf16(4096, 3072), bf16(1, 6144).reshape(6144)];
  const weight = denseWeight(bf16(6144, 1024));
  const norm = { weight: bf16(1, 1024).reshape(1024), eps: 1e-6 };
  const run = () => backend.linear(out, x, weight, { norm, bias, activation: SILU });
  const { own, products } = launches(run);
  expect(products).toBe(0);
  const [normed, kernel] = own;
  expect(own.map(({ entry }) => entry)).toEqual(["rms_norm", "linear_large"]);
  expect(kernel).toMatchObject({ grid: [132, 1, 1], block: [384, 1, 1], dependent: true });
  // Four stages of 128 tokens and 256 rows of the weight, 64 columns of each, and the barriers.
  expect(kernel!.sharedBytes).toBe(4 * (128 + 256) * 64 * 2 + 256);
  const { x_map, weight_map, ...rest } = namedArguments(kernel!);
  expect(rest).toEqual({
    ...{ out: out.address, bias: bias.address, tokens: 4096, inputs: 1024, outputs: 3072 },
  });
  const { defines } = requested.mock.lastCall![0];
  expect(defines).toMatchObject({ TILE_OUTPUTS: 256, STAGES: 4, GATED: 1, BIAS: 1, ACTIVATION: 0 });
  // The first maps of the backend: the weight for tiles of either height, and x.
  const maps = new BigUint64Array(machine.cuda.bytesOf(weight_map!).slice().buffer);
  expect(x_map).toBe(weight_map! + 256);
  const mapped = [0, 16, 32].map((word) => [maps[word], maps[word + 2]]);
  const at = BigInt(weight.data.address);
  expect(mapped).toEqual([
    [at, 5n],
    [at, 5n],
    [BigInt(namedArguments(normed!)["out"]!), 2n],
  ]);
  const again = launches(run).own[1]!;
  expect(namedArguments(again)).toMatchObject({ x_map, weight_map });
});

test("a map of x is the same for any number of tokens in its buffer, and another for another buffer", () => {
  const weight = denseWeight(bf16(6144, 1024));
  const x = bf16(4096, 1024, 5000);
  const mapOf = (input: Tensor) => {
    const out = bf16(input.dim(0), 3072);
    const { own } = launches(() => backend.linear(out, input, weight, { activation: SILU }));
    return namedArguments(own[0]!)["x_map"];
  };
  const map = mapOf(x);
  expect(mapOf(x.rows(0, 2048))).toBe(map!);
  expect(mapOf(x.rows(1, 4000))).not.toBe(map!);
  expect(mapOf(bf16(4096, 1024))).not.toBe(map!);
  // Where a weight has been may be an x of as many rows.
  const { own } = launches(() => backend.linear(bf16(4096, 3072), x, weight, { activation: SILU }));
  const there = new Tensor(weight.data.buffer, "bfloat16", [4096, 1024]);
  const other = denseWeight(bf16(6144, 1024));
  const moved = launches(() => backend.linear(bf16(4096, 3072), there, other, { activation: SILU }));
  expect(namedArguments(moved.own[0]!)["x_map"]).not.toBe(namedArguments(own[0]!)["weight_map"]!);
});

test.each([
  [4096, 24576, 256],
  [1024, 24576, 256],
  [1024, 6144, 192],
  [512, 6144, 192],
] as const)(
  "%d tokens by %d rows: tiles of %d rows keep the multiprocessors busiest",
  (tokens, rows, tile) => {
    const { entries, own } = product(tokens, rows, 1024);
    expect(entries).toEqual(["linear_large"]);
    expect(requested.mock.lastCall![0].defines).toMatchObject({ TILE_OUTPUTS: tile });
    expect(own[0]!.sharedBytes).toBeLessThanOrEqual(HOPPER_SHARED_BYTES);
    const tiles = Math.ceil(tokens / 256) * 2 * (rows / tile);
    expect(own[0]!.grid).toEqual([Math.min(132, tiles), 1, 1]);
  },
);

test("activations that are not gated, too", () => {
  const activation = { kind: "gelu_tanh", gated: false } as const;
  expect(product(4096, 4096, 1024, { activation }).entries).toEqual(["linear_large"]);
  expect(requested.mock.lastCall![0].defines).toMatchObject({ GATED: 0, BIAS: 0, ACTIVATION: 2 });
});

test.each([
  ["tiles of tokens that are half empty, beside many inputs", 320, 24576, 4096],
  ["inputs that are no whole steps", 4096, 6144, 1056],
  ["outputs that are no whole groups of rows", 4096, 6144 - 32, 1024],
] as const)("is left to cuBLASLt: %s", (_, tokens, rows, inputs) => {
  const { entries, products } = product(tokens, rows, inputs);
  expect([entries, products]).toEqual([["gated_activation"], 1]);
});

test("is left to cuBLASLt: what no activation follows, and memory that does not start at a vector", () => {
  expect(product(4096, 4096, 1024, {})).toMatchObject({ entries: [], products: 1 });
  const residual = bf16(4096, 4096);
  expect(product(4096, 4096, 1024, { addTo: residual })).toMatchObject({ entries: [], products: 1 });
  const shifted = new Tensor(bf16(4097, 1024).buffer, "bfloat16", [4096, 1024], 2);
  const weight = denseWeight(bf16(6144, 1024));
  const { own, products } = launches(() =>
    backend.linear(bf16(4096, 3072), shifted, weight, { activation: SILU }),
  );
  expect([own.map(({ entry }) => entry), products]).toEqual([["gated_activation"], 1]);
});

test("a product of many tokens allocates what one of fewer in parts needs", () => {
  using fresh = new FakeMachine();
  const other = fresh.backend();
  const weight = denseWeight(bf16(24576, 4096));
  const run = (tokens: number) =>
    other.linear(bf16(tokens, 12288), bf16(tokens, 4096), weight, { activation: SILU });
  run(4096);
  expect(fresh.cuda.launches.map(({ entry }) => entry)).toEqual(["linear_large"]);
  const allocated = fresh.cuda.alive("device memory").length;
  run(1100);
  expect(fresh.cublas.matmuls).toHaveLength(1);
  expect(fresh.cuda.alive("device memory")).toHaveLength(allocated);
});

test("GPUs before and after Hopper have none", () => {
  for (const computeCapability of [
    [8, 9],
    [10, 0],
  ] as const) {
    using other = new FakeMachine({ computeCapability });
    const weight = denseWeight(bf16(6144, 1024));
    other.backend().linear(bf16(4096, 3072), bf16(4096, 1024), weight, { activation: SILU });
    expect(other.cuda.launches.map(({ entry }) => entry)).toEqual(["gated_activation"]);
  }
});
