import { afterAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import type { LinearFusion } from "../../../../src/backend/backend.ts";
import { type QuantisedWeight, ScaleKind } from "../../../../src/backend/cuda/ops/quantised-form.ts";
import { Tensor } from "../../../../src/backend/tensor.ts";
import type { Fp8Weight, GroupedWeight, Weight } from "../../../../src/backend/weight.ts";
import { FakeMachine } from "./fake-machine.ts";
import { FakeTensors } from "./fake-tensors.ts";
import { fakeWeights } from "./fake-weights.ts";
import { namedArguments } from "./kernel-signatures.ts";
import { HOPPER_SHARED_BYTES, LaunchRecorder, MULTIPROCESSORS } from "./launch-recorder.ts";

setDefaultTimeout(300_000);

const SILU = { kind: "silu", gated: true } as const;
const recorder = new LaunchRecorder();
afterAll(() => recorder[Symbol.dispose]());
const { machine, backend, launches, launch, requested } = recorder;
const { bf16, f32, i32 } = new FakeTensors();
const { memory, fp8, grouped, superblocks, prepared } = fakeWeights(backend);

function product(weight: QuantisedWeight, tokens: number, fusion: LinearFusion = {}) {
  const [n, k] = weight.shape;
  const [x, out] = [bf16(tokens, k), bf16(tokens, fusion.activation?.gated ? n / 2 : n)];
  return { x, out, run: () => backend.linear(out, x, weight, fusion) };
}

const entriesOf = (run: () => void) => launches(run).map(({ entry }) => entry);

describe("a weight is ordered in place", () => {
  test("codes, scales and zero points of groups, each by way of memory that elements will need", () => {
    const zeros = memory(backend, "uint8", 64, 4);
    const weight = grouped(64, 512, 128, { zeros });
    const all = launches(() => prepared(weight));
    expect(all.map(({ entry }) => entry)).toEqual(["reorder_codes", "reorder_rows", "reorder_rows"]);
    const [codes, scales, points] = all.map(namedArguments);
    expect(codes).toMatchObject({ codes: weight.data.address, inputs: 512, rows: 64 });
    expect(scales).toMatchObject({ from: weight.scales.address, groups: 4, rows: 64, bytes: 2 });
    expect(points).toMatchObject({ from: zeros.address, groups: 4, rows: 64, bytes: 1 });
    // A word of codes, or a scale, a thread.
    expect(all.map(({ grid }) => grid[0])).toEqual([16, 1, 1]);
  });

  test("codes, steps and units of superblocks", () => {
    const weight = superblocks(64, 512);
    const [codes, steps, units] = launches(() => prepared(weight)).map(namedArguments);
    expect(codes).toMatchObject({ codes: weight.data.address, inputs: 512, rows: 64 });
    expect(steps).toMatchObject({ from: weight.steps.address, groups: 2, rows: 64, bytes: 16 });
    expect(units).toMatchObject({ from: weight.units.address, groups: 2, rows: 64, bytes: 4 });
  });

  test("many codes some at a time", () => {
    const [n, k] = [4104, 16_448];
    const weight = fp8(n, k);
    const all = launches(() => prepared(weight)).map(namedArguments);
    const rows = 8 * Math.floor(2 ** 26 / (8 * k));
    expect(all.map(({ rows, codes }) => ({ rows, codes }))).toEqual([
      { rows, codes: weight.data.address },
      { rows: n - rows, codes: weight.data.address + rows * k },
    ]);
  });

  test("codes of 8-bit floats alone", () => {
    expect(entriesOf(() => prepared(fp8(128, 256, { blockRows: 128 })))).toEqual(["reorder_codes"]);
  });

  test.each([
    ["rows that are no whole strips", () => fp8(50, 64)],
    ["columns that are no whole blocks", () => fp8(64, 72)],
    ["4 bits of 64 columns", () => grouped(64, 192, 64)],
    ["blocks of fewer rows than a strip", () => fp8(64, 128, { blockRows: 4 })],
    ["groups of no power of two", () => grouped(64, 384, 48)],
  ])("not where it cannot be: %s", (_, make) => {
    const weight = make();
    expect(entriesOf(() => prepared(weight))).toEqual([]);
    expect(entriesOf(product(weight, 1).run)).toEqual(["dequantise_rows"]);
  });

  test("one that was not prepared is refused", () => {
    expect(product(fp8(64, 128), 1).run).toThrow("was not prepared");
  });

  test.each([1, 3, 40])("experts multiply by what was loaded alone: %d tokens", (tokens) => {
    const [count, hidden, intermediate] = [4, 128, 64];
    const [gateUp, down] = [fp8(count * 2 * intermediate, hidden), fp8(count * hidden, intermediate)];
    const spec = { perToken: 2, softmaxOver: "all", activation: { kind: "silu" } } as const;
    const run = () =>
      backend.experts(bf16(tokens, hidden), bf16(tokens, hidden), f32(tokens, count), experts, spec);
    const experts = { count, gateUp, down };
    const args = launches(run).map(namedArguments);
    expect(args.map(({ matrices }) => matrices).filter(Boolean)).toEqual([
      gateUp.data.address,
      down.data.address,
    ]);
    prepared(down);
    expect(run).toThrow("a fp8 weight of experts was prepared");
  });
});

describe("experts in integers", () => {
  const [count, hidden, intermediate] = [4, 128, 64];
  const spec = { perToken: 2, softmaxOver: "all", activation: { kind: "silu" } } as const;
  const run =
    (tokens: number, gateUp: Weight, down: Weight = grouped(count * hidden, intermediate, 32)) =>
    () =>
      backend.experts(
        bf16(tokens, hidden),
        bf16(tokens, hidden),
        f32(tokens, count),
        experts(gateUp, down),
        spec,
      );
  const experts = (gateUp: Weight, down: Weight) => ({ count, gateUp, down });

  test.each([1, 3, 40])(
    "are multiplied by with their zero points, where they have any: %d tokens",
    (tokens) => {
      const zeros = memory(backend, "uint8", count * 2 * intermediate, 2);
      const gateUp = grouped(count * 2 * intermediate, hidden, 64, { zeros });
      const args = launches(run(tokens, gateUp))
        .map(namedArguments)
        .filter(({ matrices }) => matrices);
      expect(args.map(({ matrices, zeros: of }) => [matrices, of])).toEqual([
        [gateUp.data.address, zeros.address],
        [expect.anything(), 0],
      ]);
    },
  );

  test("of other groups than are loaded together, or in another order, are refused by what is missing", () => {
    const rows = count * 2 * intermediate;
    expect(run(1, grouped(rows, hidden, 16))).toThrow(
      "of 4 bits in groups of 16 columns; this device takes multiples of 32",
    );
    const permutation = memory(backend, "int32", hidden);
    expect(run(3, grouped(rows, hidden, 64, { permutation }))).toThrow(
      "whose columns are permuted (GPTQ's desc_act)",
    );
  });
});

describe("few tokens", () => {
  test("are one kernel with all that surrounds the product", () => {
    const weight = prepared(grouped(6144, 4096, 128, { zeros: memory(backend, "uint8", 6144, 32) }));
    const norm = { weight: bf16(4096), eps: 1e-6 };
    const [bias, addTo] = [bf16(6144), bf16(1, 6144)];
    const { x, out, run } = product(weight, 1, { norm, bias, addTo });
    const { entry, grid, block, sharedBytes, ...rest } = launch(run);
    expect(entry).toBe("linear_quantised");
    // 384 tiles of 16 rows in three rounds; eight warps multiply, two fetch.
    expect({ grid, block }).toEqual({ grid: [MULTIPROCESSORS, 1, 1], block: [576, 1, 1] });
    // So that a multiprocessor never has two of them.
    expect(sharedBytes).toBeGreaterThan(HOPPER_SHARED_BYTES / 2);
    expect(sharedBytes).toBeLessThanOrEqual(HOPPER_SHARED_BYTES);
    expect(namedArguments({ entry, grid, block, sharedBytes, ...rest })).toMatchObject({
      ...{ out: out.address, x: x.address, weight: weight.data.address, scales: weight.scales.address },
      ...{ zeros: weight.zeros!.address, gamma: norm.weight.address, bias: bias.address },
      ...{ residual: addTo.address, tokens: 1, inputs: 4096, outputs: 6144, tiles: 384, segment: 4096 },
      ...{ x_buffers: 1, group_size: 128, group_shift: 7, groups: 32, block_rows: 1, activation: -1 },
    });
    expect(requested.mock.lastCall![0].defines).toMatchObject({
      ...{
        BITS: 4,
        FLOAT8: 0,
        SCALES: ScaleKind.groupHalves,
        ZEROS: 1,
        SUB: 128,
        STAGE_GROUPS: 16,
        WARPS: 16,
        WARP_BLOCKS: 1,
      },
      ...{ TOKEN_BLOCKS: 1, KEPT: 1, STRIPS: 2, GATED: 0, OUT_FLOAT: 0 },
    });
  });

  test("halves of a gated product are strips of one tile", () => {
    const weight = prepared(fp8(1024, 512));
    const args = namedArguments(launch(product(weight, 8, { activation: SILU }).run));
    expect(args).toMatchObject({ outputs: 512, tiles: 64, groups: 1, group_shift: 31, activation: 0 });
    expect(requested.mock.lastCall![0].defines).toMatchObject({
      ...{ BITS: 8, FLOAT8: 1, SCALES: ScaleKind.rowFloats, GATED: 1, STRIPS: 2 },
    });
  });

  test("of superblocks have their units beside their steps", () => {
    const weight = prepared(superblocks(256, 512));
    expect(namedArguments(launch(product(weight, 4).run))).toMatchObject({
      ...{ weight: weight.data.address, scales: weight.steps.address, units: weight.units.address },
      ...{ zeros: 0, group_size: 32, group_shift: 5, groups: 16 },
    });
    expect(requested.mock.lastCall![0].defines).toMatchObject({
      ...{ BITS: 4, SCALES: ScaleKind.stepsAndMinima, ZEROS: 0, SUB: 32, STAGE_GROUPS: 64 },
    });
  });

  test("of a permuted weight, x is put in the order of codes, after the norm", () => {
    const permutation = i32(512);
    const weight = prepared(grouped(256, 512, 128, { permutation }));
    const { x, run } = product(weight, 1, { norm: { weight: bf16(512), eps: 1e-6 } });
    const [normed, permuted, multiplied] = launches(run);
    expect(normed).toMatchObject({ entry: "rms_norm" });
    expect(namedArguments(normed!)).toMatchObject({ x: x.address });
    const args = namedArguments(permuted!);
    expect(args).toMatchObject({ permutation: permutation.address, tokens: 1, inputs: 512 });
    expect(args["x"]).toBe(namedArguments(normed!)["out"]!);
    expect(multiplied).toMatchObject({ entry: "linear_quantised" });
    expect(namedArguments(multiplied!)).toMatchObject({ x: args["out"], gamma: 0 });
  });

  test("before Hopper too", () => {
    using older = new FakeMachine({ computeCapability: [8, 0] });
    const on = older.backend();
    const weight = prepared(fp8(256, 512, { on }), on);
    on.linear(bf16(16, 256), bf16(16, 512), weight);
    expect(older.cuda.launches.at(-1)!.entry).toBe("linear_quantised");
    on.linear(bf16(64, 256), bf16(64, 512), weight);
    expect(older.cuda.launches.at(-1)!.entry).toBe("dequantise_ordered");
  });
});

describe("a few tokens by 4 bits on Hopper", () => {
  test("are one kernel of clusters with all that surrounds the product", () => {
    const weight = prepared(grouped(2112, 1024, 128, { zeros: memory(backend, "uint8", 2112, 8) }));
    const norm = { weight: bf16(1024), eps: 1e-6 };
    const [bias, addTo] = [bf16(2112), bf16(8, 2112)];
    const { x, out, run } = product(weight, 8, { norm, bias, addTo });
    const { entry, grid, block, sharedBytes, ...rest } = launch(run);
    // Two CTAs have half of the columns each; four of 12 warps share a tile, of which a cluster has two.
    expect({ entry, grid, block }).toEqual({
      ...{ entry: "linear_quantised_split", grid: [MULTIPROCESSORS / 2, 1, 2], block: [384, 1, 1] },
    });
    expect(sharedBytes).toBeGreaterThan(HOPPER_SHARED_BYTES / 2);
    expect(sharedBytes).toBeLessThanOrEqual(HOPPER_SHARED_BYTES);
    expect(namedArguments({ entry, grid, block, sharedBytes, ...rest })).toMatchObject({
      ...{ out: out.address, x: x.address, weight: weight.data.address, scales: weight.scales.address },
      ...{ zeros: weight.zeros!.address, gamma: norm.weight.address, bias: bias.address },
      ...{ residual: addTo.address, tokens: 8, inputs: 1024, outputs: 2112, tiles: 132, slots: 1 },
      ...{ column_parts: 4, columns: 512, norm_parts: 2, group_shift: 7, groups: 8, activation: -1 },
    });
    expect(requested.mock.lastCall![0].defines).toMatchObject({
      ...{ BITS: 4, SCALES: ScaleKind.groupHalves, ZEROS: 1, SUB: 128, WARPS: 12, STAGE_BLOCKS: 2 },
      ...{ SPLITS: 2, TOKEN_BLOCKS: 1, STAGES: 4, GATED: 0, OUT_FLOAT: 0 },
    });
  });

  test("are one kernel for all numbers of them up to 8 and to 16", () => {
    const weight = prepared(grouped(512, 1024, 128));
    for (const tokens of [8, 16]) launch(product(weight, tokens, { activation: SILU }).run);
    const before = requested.mock.calls.length;
    for (const tokens of [2, 3, 7, 9, 13, 15]) {
      const { entry } = launch(product(weight, tokens, { activation: SILU }).run);
      expect(entry).toBe("linear_quantised_split");
    }
    expect(requested.mock.calls.length).toBe(before);
  });

  test("are as many clusters as run at once", () => {
    using other = new FakeMachine();
    const on = other.backend();
    other.cuda.clusters = 7;
    const weight = prepared(grouped(256, 12_288, 128, { on }), on);
    on.linear(bf16(16, 256), bf16(16, 12_288), weight);
    // Two teams each.
    expect(other.cuda.launches.at(-1)).toMatchObject({ entry: "linear_quantised_split", grid: [14, 1, 4] });
  });

  test("are multiplied in another way where too few do", () => {
    using other = new FakeMachine();
    const on = other.backend();
    other.cuda.clusters = 2;
    const weight = prepared(grouped(4096, 12_288, 128, { on }), on);
    on.linear(bf16(16, 4096), bf16(16, 12_288), weight);
    expect(other.cuda.launches.at(-1)!.entry).toBe("linear_quantised_wgmma");
    on.linear(bf16(4, 4096), bf16(4, 12_288), weight);
    expect(other.cuda.launches.at(-1)!.entry).toBe("linear_quantised");
  });
});

test("some hundred tokens are one kernel on Hopper, with the norm one ahead", () => {
  const weight = prepared(fp8(4096, 1024, { blockRows: 128 }));
  const norm = { weight: bf16(1024), eps: 1e-6 };
  const [normed, multiplied] = launches(product(weight, 64, { norm, activation: SILU }).run);
  expect(normed!.entry).toBe("rms_norm");
  expect(multiplied).toMatchObject({ entry: "linear_quantised_wgmma", grid: [64, 1, 4], block: [192, 1, 1] });
  const { weight_map, x_map, ...rest } = namedArguments(multiplied!);
  expect([weight_map, x_map]).not.toContain(undefined);
  expect(rest).toMatchObject({
    ...{ scales: weight.scales.address, zeros: 0, tokens: 64, outputs: 2048 },
    ...{ inputs: 1024, row_tiles: 64, group_size: 128, groups: 8, block_rows: 128 },
  });
  expect(requested.mock.lastCall![0].defines).toMatchObject({
    ...{ TOKENS: 64, SPLITS: 4, MIN_CTAS: 2, GATED: 1, ACTIVATION: 0, QUANTISED: 1, SUB: 128 },
  });
});

test("products by superblocks, large ones too, are those kernels' that know their steps", () => {
  using other = new FakeMachine();
  const on = other.backend();
  const weight = prepared(superblocks(6144, 4096, on), on);
  const entries = [1, 2, 4, 8, 9, 16, 96, 97].map((tokens) => {
    on.linear(bf16(tokens, 6144), bf16(tokens, 4096), weight);
    return other.cuda.launches.at(-1)!.entry;
  });
  expect(entries).toEqual([
    ...Array<string>(4).fill("linear_quantised"),
    ...Array<string>(3).fill("linear_quantised_wgmma"),
    "dequantise_ordered",
  ]);
});

test("of superblocks with minima, tiles of more than a few tokens have a multiprocessor each", () => {
  const weight = prepared(superblocks(256, 512));
  for (const [tokens, MIN_CTAS] of [
    [16, 2],
    [32, 1],
  ] as const) {
    expect(entriesOf(product(weight, tokens).run)).toEqual(["linear_quantised_wgmma"]);
    const { defines } = requested.mock.lastCall![0];
    expect(defines).toMatchObject({ TOKENS: tokens, MIN_CTAS, SCALES: ScaleKind.stepsAndMinima, SUB: 32 });
  }
});

test("a weight where one of other codes was is fetched by a map of its own", () => {
  const [eight, four] = [fp8(256, 512), grouped(256, 512, 128)];
  const here = { ...four, data: new Tensor(eight.data.buffer, "uint8", [256, 256]) };
  const x = bf16(24, 512);
  const mapsOf = (weight: Fp8Weight | GroupedWeight) => {
    const before = machine.cuda.count("cuTensorMapEncodeTiled");
    expect(entriesOf(() => backend.linear(bf16(24, 256), x, weight))).toEqual(["linear_quantised_wgmma"]);
    return machine.cuda.count("cuTensorMapEncodeTiled") - before;
  };
  // x and the codes; then the codes alone.
  expect([prepared(eight), prepared(here), eight, here].map(mapsOf)).toEqual([2, 1, 0, 0]);
});

test("more tokens are multiplied by the weight's elements", () => {
  const weight = prepared(fp8(256, 512));
  const before = machine.cublas.matmuls.length;
  const { run } = product(weight, 300, { norm: { weight: bf16(512), eps: 1e-6 } });
  const all = launches(run);
  expect(all.map(({ entry }) => entry).sort()).toEqual(["dequantise_ordered", "rms_norm"]);
  expect(machine.cublas.matmuls.length).toBe(before + 1);
  const elements = all.find(({ entry }) => entry === "dequantise_ordered")!;
  // A thread for 16 of 512 columns of 8 rows, for each strip.
  expect(elements.grid).toEqual([32, 1, 1]);
  expect(machine.cublas.matmuls.at(-1)).toMatchObject({ weight: namedArguments(elements)["out"] });
});

test("where a product may not depend on the number of tokens, all are by the weight's elements", () => {
  using other = new FakeMachine();
  const on = other.backend("bfloat16", { batchInvariant: true });
  const weight = prepared(fp8(256, 512, { on }), on);
  for (const tokens of [1, 40]) {
    on.linear(memory(on, "bfloat16", tokens, 256), memory(on, "bfloat16", tokens, 512), weight);
    expect(other.cuda.launches.at(-1)!.entry).toBe("dequantise_ordered");
  }
});

test("after tuning, nothing up to some hundred tokens makes the compiler run", () => {
  using other = new FakeMachine();
  const on = other.backend();
  const weight = prepared(fp8(512, 1024, { on }), on);
  const norm = { weight: bf16(1024), eps: 1e-6 };
  const run = (tokens: number) => on.linear(bf16(tokens, 512), bf16(tokens, 1024), weight, { norm });
  run(300);
  on.tuneLinear([1, 2, 24]);
  const compiled = other.nvrtc.requests.length;
  for (let tokens = 1; tokens <= 256; tokens++) run(tokens);
  expect(other.nvrtc.requests.length).toBe(compiled);
});
