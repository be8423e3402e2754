import { afterAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { Tensor } from "../../../../src/backend/tensor.ts";
import { denseWeight } from "../../../../src/backend/weight.ts";
import { FakeMachine } from "./fake-machine.ts";
import { FakeTensors } from "./fake-tensors.ts";
import { namedArguments } from "./kernel-signatures.ts";
import { HOPPER_SHARED_BYTES, LaunchRecorder } from "./launch-recorder.ts";

setDefaultTimeout(300_000);

const recorder = new LaunchRecorder();
afterAll(() => recorder[Symbol.dispose]());
const { machine, backend, requested, launch, launches } = recorder;
const { bf16, f32 } = new FakeTensors();
const f = Math.fround;

describe("linear", () => {
  const weight = denseWeight(bf16(6144, 1024));
  const norm = { weight: bf16(1024), eps: 1e-6 };

  test.each([9, 17, 4096])(
    "of %d tokens in no whole tiles: a norm before the product, a gated activation after it",
    (tokens) => {
      const [x, out] = [bf16(tokens, 1024), bf16(tokens, 3080)];
      const odd = denseWeight(bf16(6160, 1024));
      const activation = { kind: "gelu", gated: true } as const;
      const [normed, gated] = launches(() => backend.linear(out, x, odd, { norm, activation }));
      const product = machine.cublas.matmuls.at(-1)!;
      const { out: scratch, ...rest } = namedArguments(normed!);
      expect(normed).toMatchObject({ entry: "rms_norm", grid: [tokens, 1, 1] });
      expect(rest).toEqual({ x: x.address, weight: norm.weight.address, width: 1024, eps: f(1e-6) });
      expect(machine.cuda.bytesOf(scratch!).length).toBeGreaterThanOrEqual(tokens * 1024 * 2);
      expect(product).toMatchObject({ x: scratch, weight: odd.data.address, shape: [tokens, 1024, 6160] });
      expect(machine.cuda.bytesOf(product.out).length).toBeGreaterThanOrEqual(tokens * 6160 * 2);
      expect(gated!.grid).toEqual([tokens, 4, 1]);
      expect(gated!.grid[1]! * gated!.block[0]! * 8).toBeGreaterThanOrEqual(3080);
      expect(namedArguments(gated!)).toEqual({
        ...{ out: out.address, gate_up: product.out, width: 3080, activation: 1 },
      });
    },
  );

  test("of many tokens on Hopper: an activation has no launch of its own", () => {
    const [x, out] = [bf16(4096, 1024), bf16(4096, 3072)];
    const activation = { kind: "gelu", gated: true } as const;
    expect(launch(() => backend.linear(out, x, weight, { activation })).entry).toBe("linear_large");
  });

  test("a plain activation works in place on the product, a sum costs no launch", () => {
    const [x, out] = [bf16(300, 1024), bf16(300, 6144)];
    const activation = { kind: "gelu_tanh", gated: false } as const;
    const plain = launch(() => backend.linear(out, x, weight, { activation }));
    expect(namedArguments(plain)).toEqual({
      ...{ out: out.address, x: out.address, count: 300 * 6144, activation: 2 },
    });
    const bias = bf16(6144);
    expect(launches(() => backend.linear(out, x, weight, { bias, addTo: out }))).toEqual([]);
    expect(machine.cublas.matmuls.at(-1)).toMatchObject({
      ...{ out: out.address, x: x.address, bias: bias.address, addTo: out.address },
    });
  });

  test.each([
    [9, [96, 1, 1], 16],
    [40, [96, 1, 1], 64],
    [100, [96, 2, 1], 64],
  ])("of %d tokens is one launch on Hopper with all that surrounds it", (tokens, grid, tile) => {
    const [x, out, bias] = [bf16(tokens, 1024), bf16(tokens, 3072), bf16(6144)];
    const activation = { kind: "gelu", gated: true } as const;
    const products = machine.cublas.matmuls.length;
    const gated = launch(() => backend.linear(out, x, weight, { norm, bias, activation }));
    expect(machine.cublas.matmuls).toHaveLength(products);
    // A warpgroup, two warps that fetch and two for the norm.
    expect(gated).toMatchObject({ entry: "linear_wgmma", grid, block: [256, 1, 1] });
    const defines = { TOKENS: tile, NORM: 1, GATED: 1, ACTIVATION: 1, OUT_FLOAT: 0, MAX_K: 1024 };
    expect(requested.mock.lastCall![0].defines).toMatchObject(defines);
    const { weight_map: _, x_map: __, ...rest } = namedArguments(gated);
    expect(rest).toEqual({
      ...{ out: out.address, gamma: norm.weight.address, bias: bias.address, residual: 0 },
      ...{ tokens, outputs: 3072, row_tiles: 96, k_tiles: 8, eps: f(1e-6) },
    });
  });

  test("of 256 tokens has a norm of its own, and splits share the columns of a sum", () => {
    const [x, out] = [bf16(256, 1024), bf16(256, 3072)];
    const activation = { kind: "silu", gated: true } as const;
    const all = launches(() => backend.linear(out, x, weight, { norm, activation }));
    expect(all.map(({ entry }) => entry)).toEqual(["rms_norm", "linear_wgmma"]);
    expect(namedArguments(all[1]!)).toMatchObject({ gamma: 0, row_tiles: 96 });
    const residual = bf16(256, 1024);
    const down = denseWeight(bf16(1024, 3072));
    const summed = launch(() => backend.linear(residual, out, down, { addTo: residual }));
    expect(summed).toMatchObject({ entry: "linear_wgmma", grid: [16, 2, 2], block: [192, 1, 1] });
    expect(namedArguments(summed)).toMatchObject({ residual: residual.address, outputs: 1024 });
    expect(requested.mock.lastCall![0].defines).toMatchObject({ SPLITS: 2, NORM: 0, GATED: 0 });
  });

  test("of shapes and places that no tile takes goes to cuBLASLt", () => {
    const products = machine.cublas.matmuls.length;
    const shifted = new Tensor(bf16(17, 1024).buffer, "bfloat16", [16, 1024], 2);
    backend.linear(bf16(16, 6144), shifted, weight);
    backend.linear(bf16(16, 100), bf16(16, 1024), denseWeight(bf16(100, 1024)));
    backend.linear(bf16(16, 128), bf16(16, 1000), denseWeight(bf16(128, 1000)));
    backend.linear(f32(16, 6144), bf16(16, 1024), weight);
    expect(machine.cublas.matmuls).toHaveLength(products + 4);
  });

  test.each([1, 2, 8])("of %d tokens is one launch with all that surrounds it", (tokens) => {
    const [x, out, bias] = [bf16(tokens, 1024), bf16(tokens, 3072), bf16(6144)];
    const activation = { kind: "gelu", gated: true } as const;
    const products = machine.cublas.matmuls.length;
    const gated = launch(() => backend.linear(out, x, weight, { norm, bias, activation }));
    expect(machine.cublas.matmuls).toHaveLength(products);
    // 384 tiles of 8 gates and what they gate: three for each of 128 blocks.
    expect(gated).toMatchObject({ entry: "linear_small", grid: [128, 1, 1], block: [288, 1, 1] });
    expect(namedArguments(gated)).toEqual({
      ...{ out: out.address, x: x.address, weight: weight.data.address, gamma: norm.weight.address },
      ...{ bias: bias.address, residual: 0, tokens, outputs: 3072, tiles: 384, activation: 1 },
      ...{ trigger_early: tokens === 1 ? 1 : 0, eps: f(1e-6) },
    });
    const residual = bf16(tokens, 1024);
    const down = denseWeight(bf16(1024, 3072));
    const summed = launch(() => backend.linear(residual, out, down, { addTo: residual }));
    // Tiles of 8 rows: 16 would leave half of the multiprocessors idle.
    expect(summed).toMatchObject({ entry: "linear_small", grid: [128, 1, 1] });
    expect(namedArguments(summed)).toMatchObject({
      ...{ out: residual.address, residual: residual.address, gamma: 0, bias: 0, activation: -1, tiles: 128 },
    });
    expect(requested.mock.lastCall![0].defines).toMatchObject({
      TILE_ROWS: 8,
      NORM: 0,
      GATED: 0,
      OUT_FLOAT: 0,
    });
  });

  test("inputs that are no whole chunks of weights are a step of each warp after another", () => {
    for (const [tokens, outFeatures, inFeatures, stages] of [
      [1, 2112, 2880, 6],
      [8, 4224, 96, 2],
    ] as const) {
      const [x, out] = [bf16(tokens, inFeatures), bf16(tokens, outFeatures)];
      const products = machine.cublas.matmuls.length;
      // A tile of 16 rows for each multiprocessor, or two.
      const product = launch(() => backend.linear(out, x, denseWeight(bf16(outFeatures, inFeatures))));
      expect(product).toMatchObject({ entry: "linear_small", grid: [132, 1, 1] });
      expect(machine.cublas.matmuls).toHaveLength(products);
      const { defines } = requested.mock.lastCall![0];
      expect(defines).toMatchObject({ IN_FEATURES: inFeatures, CHUNK: 512, TILE_ROWS: 16 });
      expect(defines!["STAGES"]).toBe(stages);
    }
  });

  test("a wide one streams its weights through what shared memory there is", () => {
    for (const [tokens, staged] of [
      [1, 2],
      [2, 2],
      [3, 0],
    ] as const) {
      const [x, out] = [bf16(tokens, 12288), f32(tokens, 4096)];
      const wide = launch(() => backend.linear(out, x, denseWeight(bf16(4096, 12288))));
      expect(wide).toMatchObject({ entry: "linear_small", grid: [128, 1, 1] });
      const { defines } = requested.mock.lastCall![0];
      expect(defines).toMatchObject({ STAGED_TOKENS: staged, OUT_FLOAT: 1, MIN_CTAS: 1, TILE_ROWS: 16 });
      expect(wide.sharedBytes).toBeGreaterThan(HOPPER_SHARED_BYTES - 20_000);
      expect(namedArguments(wide)).toMatchObject({ trigger_early: 0, tiles: 256 });
    }
  });

  test.each([
    ["inputs that are no whole steps", 6144, 1000],
    ["outputs that are no whole tiles", 6141, 1024],
  ])("of few tokens is left to cuBLASLt: %s", (_, outFeatures, inFeatures) => {
    const out = bf16(1, outFeatures);
    const x = bf16(1, inFeatures);
    expect(launches(() => backend.linear(out, x, denseWeight(bf16(outFeatures, inFeatures))))).toEqual([]);
    expect(machine.cublas.matmuls.at(-1)).toMatchObject({ out: out.address, x: x.address });
  });

  test("of few tokens is left to cuBLASLt where memory does not start at a vector", () => {
    const shifted = (of: Tensor) => new Tensor(of.buffer, "bfloat16", [of.dim(0), 1024], 2);
    const x = bf16(1, 1024);
    const w = denseWeight(bf16(2048, 1024));
    const oddX = shifted(bf16(1, 1032));
    const oddWeight = denseWeight(shifted(bf16(2048, 1032)));
    const oddNorm = { weight: new Tensor(bf16(1032).buffer, "bfloat16", [1024], 2), eps: 1e-6 };
    for (const run of [
      () => backend.linear(bf16(1, 2048), oddX, w),
      () => backend.linear(bf16(1, 2048), x, oddWeight),
      () => backend.linear(bf16(1, 2048), x, w, { norm: oddNorm }),
    ]) {
      const products = machine.cublas.matmuls.length;
      const entries = launches(run).map(({ entry }) => entry);
      expect(entries).not.toContain("linear_small");
      expect(machine.cublas.matmuls).toHaveLength(products + 1);
    }
  });

  test("before bulk copies, few tokens are left to cuBLASLt, too", () => {
    using older = new FakeMachine({ computeCapability: [8, 9] });
    const other = older.backend();
    other.linear(bf16(1, 6144), bf16(1, 1024), weight);
    expect(older.cuda.launches).toEqual([]);
    expect(older.cublas.matmuls).toHaveLength(1);
  });
});
