import { afterAll, beforeAll, describe, expect, setDefaultTimeout, spyOn, test } from "bun:test";
import {
  type BatchTensors,
  JOIN_WORDS,
  type LayerCache,
  ROW_WORDS,
  type SampleRows,
  SLOT_WORDS,
  type SlotTensors,
} from "../../../../src/backend/backend.ts";
import type { CudaBackend } from "../../../../src/backend/cuda/cuda-backend.ts";
import { KernelLibrary } from "../../../../src/backend/cuda/kernel-library.ts";
import { decodeSplits } from "../../../../src/backend/cuda/ops/decode-attention.ts";
import { Tensor } from "../../../../src/backend/tensor.ts";
import { denseWeight } from "../../../../src/backend/weight.ts";
import { UnsupportedModelError } from "../../../../src/base/errors.ts";
import { MAX_BAD_WORD_TOKENS, MAX_LOGIT_EDITS } from "../../../../src/base/sampling-params.ts";
import type { FakeLaunch } from "../../cuda/fake-cuda.ts";
import { FakeMachine } from "./fake-machine.ts";
import { FakeTensors } from "./fake-tensors.ts";
import { namedArguments, SIGNATURES } from "./kernel-signatures.ts";

setDefaultTimeout(300_000);

/** What every supported GPU grants: 99 KiB of shared memory is the least of them, that of sm_86, sm_89 and sm_120. */
const LIMITS = { gridX: 2 ** 31 - 1, gridYz: 65535, threads: 1024, sharedBytes: 99 * 1024 };
/** What Hopper grants, and the kernels that are its own or ask the GPU how much it has. */
const HOPPER_SHARED_BYTES = 227 * 1024;
const ASKS_THE_GPU = [
  "decode_layers",
  ...["attention_prefill_hopper", "draw_small", "draw_wgmma", "linear_large", "linear_small", "linear_wgmma"],
];
const MULTIPROCESSORS = 132;

const machine = new FakeMachine();
const requested = spyOn(KernelLibrary.prototype, "kernel");
let backend: CudaBackend;
const tensors = new FakeTensors();

beforeAll(() => {
  backend = machine.backend();
});
afterAll(() => {
  requested.mockRestore();
  backend.dispose();
  expect(machine.leftovers).toEqual([]);
  machine[Symbol.dispose]();
});
const bf16 = (...shape: number[]) => tensors.of("bfloat16", ...shape);
const f32 = (...shape: number[]) => tensors.of("float32", ...shape);
const i32 = (...shape: number[]) => tensors.of("int32", ...shape);

/** What `run` launches, each within what every GPU can do. */
function launches(run: () => void): FakeLaunch[] {
  machine.cuda.launches.length = 0;
  run();
  for (const { entry, grid, block, sharedBytes, dependent } of machine.cuda.launches) {
    const [x, y, z] = grid as [number, number, number];
    const within =
      Math.min(x, y, z) >= 1 &&
      x <= LIMITS.gridX &&
      Math.max(y, z) <= LIMITS.gridYz &&
      block[0]! % 32 === 0 &&
      block[0]! <= LIMITS.threads &&
      sharedBytes <= (ASKS_THE_GPU.includes(entry) ? HOPPER_SHARED_BYTES : LIMITS.sharedBytes);
    expect({ entry, grid, block, sharedBytes, within }).toMatchObject({ within: true });
    expect(dependent).toBe(true);
  }
  return [...machine.cuda.launches];
}

function launch(run: () => void): FakeLaunch {
  const all = launches(run);
  expect(all).toHaveLength(1);
  return all[0]!;
}

/** The macros that `file` was compiled with for heads of this shape. */
function macrosOf(file: string, group: number, headDim: number): Readonly<Record<string, number>> {
  const call = requested.mock.calls.find(
    ([{ file: name, defines }]) =>
      name === file && defines?.["HEAD_DIM"] === headDim && defines["GROUP_SIZE"] === group,
  );
  return { ...call![0].constants, ...call![0].defines } as Record<string, number>;
}

const f = Math.fround;
const address = (tensor: Tensor) => tensor.address;

function batch(extents: {
  decodeRows: number;
  prefill: readonly number[];
  slots?: number;
  blocks?: number;
}): BatchTensors {
  const { decodeRows, prefill, slots = 300, blocks = 64 } = extents;
  const numTokens = decodeRows + prefill.reduce((a, b) => a + b, 0);
  const numRows = decodeRows + prefill.length;
  return {
    ...{ numTokens, numRows, decodeRows, blockSize: 16 },
    maxQueryLen: Math.max(1, ...prefill),
    ...{ tokenIds: i32(numTokens), positions: i32(numTokens), slotMapping: i32(numTokens) },
    ...{ cuSeqlensQ: i32(numRows + 1), contextLens: i32(numRows), rowSlots: i32(numRows) },
    blockTables: i32(slots, blocks),
  };
}

function slotTables(vocab: number, slots = 300): SlotTensors {
  return {
    tokens: i32(slots, 1025),
    lengths: i32(slots),
    numComputedTokens: i32(slots),
    blockTables: i32(slots, 64),
    params: tensors.of("uint32", slots, SLOT_WORDS),
    edits: tensors.of("uint32", slots, MAX_LOGIT_EDITS, 3),
    badWords: tensors.of("uint32", slots, MAX_BAD_WORD_TOKENS),
    allowed: tensors.of("uint32", slots, Math.ceil(vocab / 32)),
    counts: tensors.of("uint32", slots, vocab),
  };
}

function sampleRows(count: number): SampleRows {
  return { slots: i32(count), positions: i32(count), tokenIndices: i32(count) };
}

function layerCache(kvHeads: number, headDim: number): LayerCache {
  return { keys: bf16(100, kvHeads, 16, headDim), values: bf16(100, kvHeads, 16, headDim) };
}

test("the rotary table is made a block a position, its factor in two parts of float32", () => {
  const [out, frequencies] = [f32(40960, 128), f32(64)];
  const made = launch(() => backend.rotaryTable(out, frequencies, 1.1386));
  expect([made.grid, made.block]).toEqual([
    [40960, 1, 1],
    [64, 1, 1],
  ]);
  const { amplitude, amplitude_rest, ...rest } = namedArguments(made);
  expect(rest).toEqual({ out: out.address, frequencies: frequencies.address, half: 64 });
  expect(amplitude).toBe(f(1.1386));
  expect(amplitude! + amplitude_rest!).toBeCloseTo(1.1386, 14);
  expect(launch(() => backend.rotaryTable(f32(3, 600), f32(300), 1)).block).toEqual([256, 1, 1]);
});

describe("rows", () => {
  test.each([1, 3, 256, 5000])(
    "%d are gathered, a block each, 16 bytes a copy where that divides a row",
    (rows) => {
      const [out, table, ids] = [bf16(rows, 1024), bf16(500, 1024), i32(rows)];
      const wide = launch(() => backend.embedding(out, table, ids));
      expect(wide.grid).toEqual([rows, 1, 1]);
      expect(namedArguments(wide)).toEqual({
        out: out.address,
        table: table.address,
        ids: ids.address,
        units: 128,
      });
      const odd = [bf16(rows, 33), bf16(500, 33)] as const;
      expect(namedArguments(launch(() => backend.gatherRows(...odd, ids)))).toMatchObject({ units: 33 });
    },
  );

  test.each([
    [64, 32],
    [1024, 128],
    [4096, 512],
    [8192, 512],
    [1001, 512],
    [7, 32],
  ])("of %d elements are normalised by %d threads", (width, threads) => {
    const [out, x] = [bf16(3, width), bf16(3, width)];
    const [weight, bias] = [bf16(width), bf16(width)];
    const plain = launch(() => backend.rmsNorm(out, x, weight, 1e-6));
    const shape = { grid: [3, 1, 1], block: [threads, 1, 1], sharedBytes: 0 };
    expect(plain).toMatchObject({ entry: "rms_norm", ...shape });
    const common = { out: out.address, x: x.address, weight: weight.address, width };
    expect(namedArguments(plain)).toEqual({ ...common, eps: f(1e-6) });
    const layer = launch(() => backend.layerNorm(out, x, weight, bias, 1e-5));
    expect(namedArguments(layer)).toEqual({ ...common, bias: bias.address, eps: f(1e-5) });
    const unbiased = launch(() => backend.layerNorm(out, x, weight, undefined, 1e-5));
    expect(namedArguments(unbiased)).toMatchObject({ bias: 0 });
  });

  test("that start off a vector boundary are taken an element at a time", () => {
    const whole = bf16(4, 1025);
    const shifted = new Tensor(whole.buffer, "bfloat16", [4, 1024], 2);
    launch(() => backend.rmsNorm(bf16(4, 1024), shifted, bf16(1024), 1e-6));
    expect(requested.mock.lastCall![0].defines).toMatchObject({ ACCESS: 1 });
  });
});

describe("activations", () => {
  test.each([1, 17, 4096])("of %d tokens cover every element", (tokens) => {
    const out = bf16(tokens, 3072);
    const plain = launch(() => backend.activation(out, out, "gelu_tanh"));
    expect(plain.grid[0]! * plain.block[0]! * 8).toBeGreaterThanOrEqual(tokens * 3072);
    expect(namedArguments(plain)).toEqual({
      ...{ out: out.address, x: out.address, count: tokens * 3072, activation: 2 },
    });
  });
});

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
    ["inputs that are no whole chunks", 6144, 1000],
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
    using owner = { backend: older.backend(), [Symbol.dispose]: () => owner.backend.dispose() };
    owner.backend.linear(bf16(1, 6144), bf16(1, 1024), weight);
    expect(older.cuda.launches).toEqual([]);
    expect(older.cublas.matmuls).toHaveLength(1);
  });
});

describe("attend", () => {
  const spec = (group: number, headDim: number, { window = 0, rotaryDim = headDim } = {}) => ({
    ...{ numHeads: 4 * group, numKvHeads: 4, headDim, scale: headDim ** -0.5, window },
    cosSin: f32(2048, rotaryDim),
  });
  const operands = (rows: BatchTensors, group: number, headDim: number) => ({
    out: bf16(rows.numTokens, 4 * group * headDim),
    qkv: bf16(rows.numTokens, (4 * group + 8) * headDim),
    cache: layerCache(4, headDim),
  });

  test.each([
    [64, 64],
    [128, 128],
    [128, 64],
    [96, 96],
    [256, 256],
    [96, 32],
  ])("of prompts begins with heads of %d dimensions, %d of them rotated", (headDim, rotaryDim) => {
    const step = batch({ decodeRows: 5, prefill: [40] });
    const { out, qkv, cache } = operands(step, 4, headDim);
    const [query, key] = [bf16(headDim), bf16(headDim)];
    const bare = spec(4, headDim, { rotaryDim });
    const headNorm = { query, key, eps: 1e-6 };
    const [, stored] = launches(() => backend.attend(out, qkv, cache, step, { ...bare, headNorm }));
    expect(stored!.entry).toBe("rope_store");
    expect(stored!.grid[0]).toBe(40);
    // Of the tokens after the decode rows.
    const width = (16 + 8) * headDim;
    const common = {
      ...{ qkv: qkv.address + 5 * width * 2, keys: cache.keys.address, values: cache.values.address },
      ...{ cos_sin: bare.cosSin.address, positions: step.positions.address + 20 },
      ...{ slot_mapping: step.slotMapping.address + 20, heads: 16, kv_heads: 4, block_size: 16 },
    };
    const norms = { query_norm: query.address, key_norm: key.address, eps: f(1e-6) };
    expect(namedArguments(stored!)).toEqual({ ...common, ...norms });
    const [, unnormed] = launches(() => backend.attend(out, qkv, cache, step, bare));
    expect(namedArguments(unnormed!)).toEqual({ ...common, query_norm: 0, key_norm: 0, eps: 0 });
  });

  test.each([
    [1, 2, 128],
    [2, 1, 64],
    [3, 16, 64],
    [33, 7, 96],
    [256, 8, 256],
  ])("of %d decode rows, %d queries a key, %d dimensions", (rows, group, headDim) => {
    const step = batch({ decodeRows: rows, prefill: [] });
    const { out, qkv, cache } = operands(step, group, headDim);
    const [query, key] = [bf16(headDim), bf16(headDim)];
    const heads = spec(group, headDim, { window: 100, rotaryDim: headDim / 2 });
    const headNorm = { query, key, eps: 1e-6 };
    const decode = launch(() => backend.attend(out, qkv, cache, step, { ...heads, headNorm }));
    const { splits, minTiles } = decodeSplits(rows, 4, MULTIPROCESSORS);
    expect(decode).toMatchObject({ entry: "attention_decode", grid: [4, rows, splits], sharedBytes: 0 });
    const { DECODE_WARPS, WARP } = macrosOf("attention_decode.cu", group, headDim);
    expect(decode.block).toEqual([DECODE_WARPS! * WARP!, 1, 1]);
    const { partials, partial_stats, counters, ...rest } = namedArguments(decode);
    const common = {
      ...{ out: out.address, qkv: qkv.address, keys: cache.keys.address, values: cache.values.address },
      ...{ cos_sin: heads.cosSin.address, slot_mapping: step.slotMapping.address },
      ...{ block_tables: step.blockTables.address, row_slots: step.rowSlots.address },
      ...{ context_lens: step.contextLens.address, max_blocks: 64, window: 100 },
      ...{ scale_log2: f(headDim ** -0.5 * Math.LOG2E), min_split_tiles: minTiles },
    };
    expect(rest).toEqual({
      ...common,
      ...{ query_norm: query.address, key_norm: key.address, eps: f(1e-6) },
    });
    const scratch = [partials!, partial_stats!, counters!].map((at) => machine.cuda.bytesOf(at));
    const parts = splits > 1 ? rows * 4 * splits : 0;
    expect(scratch[0]!.length).toBeGreaterThanOrEqual(parts * group * headDim * 4);
    expect(scratch[1]!.length).toBeGreaterThanOrEqual(parts * group * 8);
    expect(scratch[2]!.length).toBeGreaterThanOrEqual(rows * 4 * (splits > 1 ? 4 : 0));
    expect(scratch[2]!.every((byte) => byte === 0)).toBe(true);
    const unnormed = launch(() => backend.attend(out, qkv, cache, step, heads));
    expect(namedArguments(unnormed)).toMatchObject({ ...common, query_norm: 0, key_norm: 0, eps: 0 });
    expect(namedArguments(unnormed)).toMatchObject({ partials, partial_stats, counters });
  });

  test("of few rows keeps every multiprocessor busy, of many cuts none", () => {
    expect(decodeSplits(1, 8, 132)).toEqual({ splits: 49, minTiles: 4 });
    expect(decodeSplits(1, 1, 132)).toEqual({ splits: 396, minTiles: 4 });
    expect(decodeSplits(16, 8, 132)).toEqual({ splits: 16, minTiles: 16 });
    expect(decodeSplits(4096, 8, 132).splits).toBe(1);
    for (const rows of [1, 16, 4096]) {
      expect(decodeSplits(rows, 8, 132, true)).toEqual({ splits: 16, minTiles: 16 });
      // What scratch is allocated for.
      const { splits } = decodeSplits(rows, 8, 132);
      expect(splits === 1 || rows * 8 * splits <= 132 * 16).toBe(true);
    }
  });

  test("whose decode rows must not depend on each other cuts a row by its length alone", () => {
    using invariant = new FakeMachine();
    using owner = {
      backend: invariant.backend("bfloat16", { batchInvariant: true }),
      [Symbol.dispose]: () => owner.backend.dispose(),
    };
    const scratchOf = (rows: number) => {
      const step = batch({ decodeRows: rows, prefill: [] });
      const { out, qkv, cache } = operands(step, 2, 64);
      owner.backend.attend(out, qkv, cache, step, spec(2, 64));
      const decode = invariant.cuda.launches.at(-1)!;
      const { min_split_tiles, counters, partials } = namedArguments(decode);
      expect(decode.grid).toEqual([4, rows, 16]);
      expect(min_split_tiles).toBe(16);
      expect(invariant.cuda.bytesOf(counters!).length).toBeGreaterThanOrEqual(rows * 4 * 4);
      expect(invariant.cuda.bytesOf(partials!).length).toBeGreaterThanOrEqual(rows * 4 * 16 * 2 * 64 * 4);
      return partials;
    };
    expect(scratchOf(1)).not.toBe(scratchOf(200));
    expect(scratchOf(100)).toBe(scratchOf(200));
  });

  const PROMPTS = [
    [[1], 1, 64],
    [[5, 700], 2, 128],
    [[16384], 8, 256],
    [[64, 64, 64], 7, 96],
  ] as const;

  test.each(PROMPTS)(
    "of prompts of %p tokens after 3 decode rows, before Hopper",
    (prefill, group, headDim) => {
      const step = batch({ decodeRows: 3, prefill });
      const { out, qkv, cache } = operands(step, group, headDim);
      using older = new FakeMachine({ computeCapability: [8, 0] });
      using owner = { backend: older.backend(), [Symbol.dispose]: () => owner.backend.dispose() };
      owner.backend.attend(out, qkv, cache, step, spec(group, headDim));
      const prompt = older.cuda.launches.at(-1);
      const rows = headDim <= 128 ? 128 : 64;
      const tiles = Math.ceil((step.maxQueryLen * group) / rows);
      expect(prompt).toMatchObject({ entry: "attention_prefill", grid: [tiles, 4, prefill.length] });
      const macros = macrosOf("attention_prefill.cu", group, headDim);
      const { PREFILL_ROWS, PREFILL_KEYS, PREFILL_PADDING, PREFILL_WARPS, WARP } = macros;
      expect(prompt!.block).toEqual([PREFILL_WARPS! * WARP!, 1, 1]);
      // As the kernel's comment has it, in elements of 2 bytes.
      const stride = headDim + PREFILL_PADDING!;
      expect(prompt!.sharedBytes).toBe((PREFILL_ROWS! + 2 * PREFILL_KEYS!) * stride * 2);
      expect(namedArguments(prompt!)).toEqual({
        ...{ out: out.address, qkv: qkv.address, keys: cache.keys.address, values: cache.values.address },
        ...{ block_tables: step.blockTables.address, row_slots: step.rowSlots.address },
        ...{ cu_seqlens_q: step.cuSeqlensQ.address, context_lens: step.contextLens.address },
        ...{ first_row: 3, max_blocks: 64, scale_log2: f(headDim ** -0.5 * Math.LOG2E), window: 0 },
      });
    },
  );

  test.each(PROMPTS)("of prompts of %p tokens after 3 decode rows, on Hopper", (prefill, group, headDim) => {
    const step = batch({ decodeRows: 3, prefill });
    const { out, qkv, cache } = operands(step, group, headDim);
    const heads = spec(group, headDim);
    const [, , prompt] = launches(() => backend.attend(out, qkv, cache, step, heads));
    // 96 dimensions are no whole number of swizzled rows.
    if (headDim % 64 !== 0) return expect(prompt!.entry).toBe("attention_prefill");
    const tiles = Math.ceil((step.maxQueryLen * group) / 128) * prefill.length * 4;
    const grid = [Math.min(MULTIPROCESSORS, tiles), 1, 1];
    expect(prompt).toMatchObject({ entry: "attention_prefill_hopper", grid, block: [384, 1, 1] });
    // Queries, two stages of keys and of values, and what the warps tell each other.
    const [keys, queryStages] = headDim <= 128 ? [128, 2] : [64, 1];
    expect(prompt!.sharedBytes).toBe((128 * queryStages + 4 * keys) * headDim * 2 + 256);
    const { maps, queue, ...rest } = namedArguments(prompt!);
    expect(rest).toEqual({
      ...{ out: out.address, qkv: qkv.address, num_kv_heads: 4, num_rows: prefill.length },
      ...{ block_tables: step.blockTables.address, row_slots: step.rowSlots.address },
      ...{ cu_seqlens_q: step.cuSeqlensQ.address, context_lens: step.contextLens.address },
      ...{ first_row: 3, max_blocks: 64, scale_log2: f(headDim ** -0.5 * Math.LOG2E), window: 0 },
    });
    expect(machine.cuda.bytesOf(queue!)).toEqual(new Uint8Array(8));
    const read = new BigUint64Array(machine.cuda.bytesOf(maps!).slice().buffer);
    expect([read[0], read[16]]).toEqual([BigInt(cache.keys.address), BigInt(cache.values.address)]);
    const again = launches(() => backend.attend(out, qkv, cache, step, heads)).at(-1)!;
    expect(namedArguments(again)).toMatchObject({ maps, queue });
    // The same memory with other blocks is another cache.
    const other = { ...step, blockSize: 8 };
    const halves = {
      keys: cache.keys.reshape(200, 4, 8, headDim),
      values: cache.values.reshape(200, 4, 8, headDim),
    };
    const moved = launches(() => backend.attend(out, qkv, halves, other, heads)).at(-1)!;
    expect(namedArguments(moved)["maps"]).not.toBe(maps);
  });

  test("in a layer of few rows is part of one launch", () => {
    const [rows, tokens] = [batch({ decodeRows: 3, prefill: [] }), 3];
    const [residual, { out, qkv, cache }] = [bf16(tokens, 512), operands(rows, 2, 64)];
    const activated = bf16(tokens, 1024);
    const weight = (n: number, k: number) => denseWeight(bf16(n, k));
    const norm = { weight: bf16(512), eps: 1e-6 };
    const layer = launch(() => {
      backend.linear(qkv, residual, weight(1024, 512), { norm });
      backend.attend(out, qkv, cache, rows, spec(2, 64));
      backend.linear(residual, out, weight(512, 512), { addTo: residual });
      backend.linear(activated, residual, weight(2048, 512), {
        norm,
        activation: { kind: "silu", gated: true },
      });
      backend.linear(residual, activated, weight(512, 1024), { addTo: residual });
      backend.synchronize();
    });
    // pending-layers.test.ts has the rest.
    expect(layer).toMatchObject({ entry: "decode_layers", grid: [MULTIPROCESSORS, 1, 1] });
  });

  test("refuses heads that its kernels cannot take", () => {
    for (const [group, headDim] of [
      [1, 80],
      [1, 288],
      [17, 128],
    ] as const) {
      const step = batch({ decodeRows: 1, prefill: [] });
      const { out, qkv, cache } = operands(step, group, headDim);
      const run = () => backend.attend(out, qkv, cache, step, spec(group, headDim));
      expect(launches(() => expect(run).toThrow(UnsupportedModelError))).toEqual([]);
    }
  });
});

describe("the batch", () => {
  test.each([
    [1, [5]],
    [256, []],
    [0, [16000, 384]],
  ])("of %d decode rows and prompts of %p", (decodeRows, prefill) => {
    const step = batch({ decodeRows, prefill });
    const slots = slotTables(100);
    const inbox = { steps: tensors.of("uint32", 1), areas: i32(2, 5000) };
    const samples = sampleRows(step.numRows);
    const prepared = launch(() => backend.prepareBatch(step, samples, inbox, slots));
    // More than one block could see a slot advanced before it has read where the slot starts.
    expect(prepared.grid).toEqual([1, 1, 1]);
    expect(prepared.sharedBytes).toBe(4 * ROW_WORDS * step.numRows);
    expect(namedArguments(prepared)).toEqual({
      ...{ token_ids: address(step.tokenIds), positions: address(step.positions) },
      ...{ slot_mapping: address(step.slotMapping), cu_seqlens_q: address(step.cuSeqlensQ) },
      ...{ context_lens: address(step.contextLens), row_slots: address(step.rowSlots) },
      ...{ steps: address(inbox.steps), inbox: address(inbox.areas), areas: 2, area_words: 5000 },
      ...{ sample_slots: address(samples.slots), sample_positions: address(samples.positions) },
      ...{ sample_tokens: address(samples.tokenIndices), num_computed: address(slots.numComputedTokens) },
      ...{ tokens: address(slots.tokens), lengths: address(slots.lengths) },
      ...{
        block_tables: address(slots.blockTables),
        num_tokens: step.numTokens,
        num_rows: step.numRows,
        capacity: 1025,
        max_blocks: 64,
        block_size: 16,
      },
    });
  });

  test("of as many rows as there can be, and its answer", () => {
    const step = batch({ decodeRows: 4096, prefill: [] });
    const areas = { steps: tensors.of("uint32", 1), areas: i32(4, 4096 * ROW_WORDS) };
    launch(() => backend.prepareBatch(step, sampleRows(4096), areas, slotTables(100)));
    const results = i32(700);
    const posted = launch(() => backend.post(areas, results));
    expect(posted.grid[0]! * posted.block[0]!).toBeGreaterThanOrEqual(700);
    expect(namedArguments(posted)).toEqual({
      ...{ outbox: address(areas.areas), results: address(results), steps: address(areas.steps) },
      ...{ areas: 4, area_words: 4096 * ROW_WORDS, count: 700 },
    });
  });

  test.each([1, 1000])("%d table entries are scattered, and slots taken", (count) => {
    const slots = slotTables(5000);
    const [indices, values] = [i32(count), i32(count)];
    const scatter = launch(() => backend.scatter(slots.blockTables, indices, values));
    expect(scatter.grid[0]! * scatter.block[0]!).toBeGreaterThanOrEqual(count);
    expect(namedArguments(scatter)).toEqual({
      ...{ target: address(slots.blockTables), indices: address(indices), values: address(values), count },
    });
    const joins = i32(count, JOIN_WORDS);
    const joining = launch(() => backend.joinSlots(slots, joins));
    expect(joining.grid).toEqual([count, 1, 1]);
    expect(namedArguments(joining)).toEqual({
      ...{ lengths: address(slots.lengths), num_computed: address(slots.numComputedTokens) },
      ...{ counts: address(slots.counts), tokens: address(slots.tokens), params: address(slots.params) },
      ...{ joins: address(joins), capacity: 1025, vocab: 5000 },
    });
  });
});

describe("logits", () => {
  test.each([
    [1, 100],
    [3, 512],
    [256, 151_936],
    [300, 262_144],
  ])("of %d rows over %d tokens are processed, drawn from and ranked", (rows, vocab) => {
    const slots = slotTables(vocab);
    const [logits, out] = [f32(rows, vocab), i32(rows)];
    const samples = sampleRows(rows);
    const tiles = Math.ceil(vocab / 512);
    const common = {
      ...{
        logits: address(logits),
        row_slots: address(samples.slots),
        positions: address(samples.positions),
      },
      ...{ params: address(slots.params), vocab },
    };

    const processed = launch(() => backend.processLogits(logits, logits, samples, slots));
    expect(processed.grid[1]).toBe(rows);
    expect(namedArguments(processed)).toEqual({
      ...{ ...common, out: address(logits), tokens: address(slots.tokens), edits: address(slots.edits) },
      ...{
        bad_words: address(slots.badWords),
        allowed: address(slots.allowed),
        counts: address(slots.counts),
      },
      capacity: 1025,
    });

    const [tile, row] = launches(() => backend.sample(out, logits, logits, samples, slots));
    expect([tile!.entry, tile!.grid[1]]).toEqual(["sample_tiles", rows]);
    expect(tile!.grid[0]! * (tile!.block[0]! / 32)).toBeGreaterThanOrEqual(tiles);
    const { stats, ...tileArguments } = namedArguments(tile!);
    expect(tileArguments).toEqual({ ...common, processed: address(logits), tiles });
    expect(machine.cuda.bytesOf(stats!).length).toBeGreaterThanOrEqual(rows * tiles * 16);
    expect(row).toMatchObject({ entry: "sample_rows", grid: [rows, 1, 1], sharedBytes: 4 * tiles });
    expect(namedArguments(row!)).toEqual({
      ...{ ...common, processed: address(logits), out: address(out), stats: stats! },
      tokens: address(slots.tokens),
      ...{ lengths: address(slots.lengths), counts: address(slots.counts), tiles, capacity: 1025 },
    });

    const ranked = { chosen: f32(rows), ranks: i32(rows), topIds: i32(rows, 5), topLogprobs: f32(rows, 5) };
    const [sums, ranks] = launches(() => backend.logprobs(ranked, logits, out));
    const { stats: sumsAt, ...sumArguments } = namedArguments(sums!);
    expect(sumArguments).toEqual({ logits: address(logits), rows: 0, vocab, tiles });
    expect(machine.cuda.bytesOf(sumsAt!).length).toBeGreaterThanOrEqual(rows * tiles * 8);
    expect(namedArguments(ranks!)).toEqual({
      ...{ chosen: address(ranked.chosen), ranks: address(ranked.ranks), top_ids: address(ranked.topIds) },
      ...{ top_logprobs: address(ranked.topLogprobs), logits: address(logits), stats: sumsAt!, vocab, tiles },
      ...{ tokens: address(out), rows: 0, top: 5 },
    });
  });
});

describe("tokens are drawn", () => {
  const draw = (rows: number, vocab: number, width: number) => {
    const [slots, samples, out] = [slotTables(vocab), sampleRows(rows), i32(rows)];
    const head = { weight: denseWeight(bf16(vocab, width)), norm: { weight: bf16(width), eps: 1e-6 } };
    const [x, logits] = [bf16(rows, width), f32(rows, vocab)];
    const all = launches(() => backend.drawTokens(out, x, head, logits, samples, slots));
    return { all, slots, samples, out, head, x, logits };
  };

  test.each([
    [1, 151_936, 1024],
    [8, 151_936, 4096],
    [2, 128_256, 8192],
    [3, 1056, 768],
  ])("for %d rows by the head of %d tokens, %d wide, from keys alone", (rows, vocab, width) => {
    const { all, slots, samples, out, head, x } = draw(rows, vocab, width);
    const [keys, row] = all;
    expect(all.map(({ entry }) => entry)).toEqual(["draw_small", "draw_rows"]);
    expect(keys!.grid[0]).toBeLessThanOrEqual(MULTIPROCESSORS);
    const { keys: at, tiles, ...product } = namedArguments(keys!);
    expect(product).toEqual({
      ...{ x: address(x), weight: address(head.weight.data), gamma: address(head.norm.weight) },
      ...{ row_slots: address(samples.slots), positions: address(samples.positions) },
      ...{ params: address(slots.params), tokens: rows, vocab, trigger_early: 0, eps: f(1e-6) },
    });
    expect(vocab % tiles!).toBe(0);
    expect(machine.cuda.bytesOf(at!).length).toBeGreaterThanOrEqual(8 * rows * keys!.grid[0]!);
    expect(namedArguments(row!)).toEqual({
      ...{ out: address(out), keys: at!, row_slots: address(samples.slots), tokens: address(slots.tokens) },
      ...{ lengths: address(slots.lengths), rows, parts: keys!.grid[0]!, capacity: 1025 },
    });
  });

  test.each([
    [9, 151_936, 1024, [9]],
    [64, 128_256, 4096, [64]],
    [65, 1280, 64, [65]],
    [256, 262_144, 2560, [256]],
    [600, 151_936, 1024, [256, 256, 88]],
  ])(
    "for %d rows by the head of %d tokens, %d wide, from keys alone: %j at a time",
    (rows, vocab, width, parts) => {
      const { all, slots, samples, out, x } = draw(rows, vocab, width);
      const steps = parts.map((_, i) => all.slice(3 * i, 3 * i + 3));
      expect(all).toHaveLength(3 * parts.length);
      let first = 0;
      for (const [i, [norm, keys, row]] of steps.entries()) {
        expect([norm!, keys!, row!].map(({ entry }) => entry)).toEqual([
          "rms_norm",
          "draw_wgmma",
          "draw_rows",
        ]);
        expect(namedArguments(norm!)).toMatchObject({ x: address(x) + 2 * first * width });
        const { grid } = keys!;
        expect(grid[0]).toBeLessThanOrEqual(MULTIPROCESSORS);
        const { maps, keys: at, ...product } = namedArguments(keys!);
        expect(product).toEqual({
          ...{
            row_slots: address(samples.slots) + 4 * first,
            positions: address(samples.positions) + 4 * first,
          },
          ...{ params: address(slots.params), tokens: parts[i]!, tiles: vocab / 128, k_tiles: width / 64 },
        });
        expect(machine.cuda.bytesOf(maps!).length).toBeGreaterThanOrEqual(256);
        expect(machine.cuda.bytesOf(at!).length).toBeGreaterThanOrEqual(8 * parts[i]!);
        expect(namedArguments(row!)).toMatchObject({
          ...{ out: address(out) + 4 * first, keys: at!, row_slots: address(samples.slots) + 4 * first },
          ...{ rows: parts[i]!, parts: 1 },
        });
        first += parts[i]!;
      }
    },
  );

  test("with keys that are cleared where the kernel that does so could not be launched", () => {
    const { all, slots, samples, out, head, x, logits } = draw(9, 1280, 64);
    const { keys: at } = namedArguments(all.find(({ entry }) => entry === "draw_wgmma")!);
    const keys = machine.cuda.bytesOf(at!);
    keys.fill(1);
    // The norm and the product come first.
    machine.cuda.fail("cuLaunchKernelEx", 701, 3);
    expect(() => backend.drawTokens(out, x, head, logits, samples, slots)).toThrow(/draw_rows/);
    expect(keys.every((byte) => byte === 0)).toBe(true);
  });

  test("after a step of many rows, one of any size allocates and uploads nothing", () => {
    using fresh = new FakeMachine();
    using owner = { backend: fresh.backend(), [Symbol.dispose]: () => owner.backend.dispose() };
    const [vocab, width] = [2560, 512];
    const head = { weight: denseWeight(bf16(vocab, width)), norm: { weight: bf16(width), eps: 1e-6 } };
    const [slots, x, logits, out] = [slotTables(vocab), bf16(256, width), f32(256, vocab), i32(256)];
    const run = (rows: number) => {
      const first = (tensor: Tensor) => tensor.rows(0, rows);
      owner.backend.drawTokens(first(out), first(x), head, first(logits), sampleRows(rows), slots);
    };
    run(256);
    const calls = () =>
      (["cuMemAlloc_v2", "cuMemcpyHtoDAsync_v2"] as const).map((call) => fresh.cuda.count(call));
    const before = calls();
    for (const rows of [1, 8, 9, 64, 65, 128, 200]) run(rows);
    expect(calls()).toEqual(before);
  });

  test.each([
    ["more rows by a vocabulary that is no whole number of tiles", 9, 151_952, 1024],
    ["a vocabulary that is no whole number of tiles", 1, 151_937, 1024],
    ["a width that is no whole number of chunks", 8, 151_936, 1000],
  ])("for %s from logits, unprocessed", (_, rows, vocab, width) => {
    const { all, logits } = draw(rows, vocab, width);
    expect(all.map(({ entry }) => entry)).toEqual(["rms_norm", "sample_tiles", "sample_rows"]);
    expect(namedArguments(all[1]!)).toMatchObject({ logits: address(logits), processed: address(logits) });
  });
});

test("nothing is launched for no rows", () => {
  const slots = slotTables(100);
  const samples = sampleRows(0);
  const before = machine.cublas.matmuls.length;
  const none = launches(() => {
    backend.rotaryTable(f32(0, 8), f32(4), 1);
    backend.embedding(bf16(0, 64), bf16(5, 64), i32(0));
    backend.rmsNorm(bf16(0, 64), bf16(0, 64), bf16(64), 1e-6);
    backend.activation(bf16(0, 64), bf16(0, 64), "silu");
    const weight = denseWeight(bf16(128, 32));
    const activation = { kind: "silu", gated: true } as const;
    backend.linear(bf16(0, 64), bf16(0, 32), weight, { norm: { weight: bf16(32), eps: 1e-6 }, activation });
    backend.scatter(slots.blockTables, i32(0), i32(0));
    backend.joinSlots(slots, i32(0, JOIN_WORDS));
    backend.processLogits(f32(0, 100), f32(0, 100), samples, slots);
    backend.sample(i32(0), f32(0, 100), f32(0, 100), samples, slots);
    backend.drawTokens(
      i32(0),
      bf16(0, 256),
      { weight: denseWeight(bf16(100, 256)) },
      f32(0, 100),
      samples,
      slots,
    );
  });
  expect(none).toEqual([]);
  expect(machine.cublas.matmuls.length).toBe(before);
});

/** Runs last: by now every op has asked for its kernels. */
test("every kernel of the sources is launched by some op", () => {
  const asked = new Set(requested.mock.calls.map(([{ file }, entry]) => `${file}: ${entry}`));
  const declared = [...SIGNATURES].map(([entry, { file }]) => `${file}: ${entry}`);
  expect([...asked].sort()).toEqual(declared.sort());
});
