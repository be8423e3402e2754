import { describe, expect, setDefaultTimeout, test } from "bun:test";
import type { AttentionSpec } from "../../../../src/backend/attention-spec.ts";
import type { LayerCache } from "../../../../src/backend/backend.ts";
import { decodeSplits } from "../../../../src/backend/cuda/ops/decode-attention.ts";
import { denseWeight } from "../../../../src/backend/weight.ts";
import { InvariantError, UnsupportedModelError } from "../../../../src/base/errors.ts";
import { attendMachine, PLAIN_SCORES, UNSCALED } from "./attend-machine.ts";
import { FakeMachine } from "./fake-machine.ts";
import { namedArguments } from "./kernel-signatures.ts";
import { MULTIPROCESSORS } from "./launch-recorder.ts";

setDefaultTimeout(300_000);

const { machine, backend, requested, launch, launches, fakes, spec, operands, macrosOf } = attendMachine();
const { bf16, f32, batch, float8Cache } = fakes;
const f = Math.fround;

describe("attend", () => {
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
    expect(machine.cuda.sharedPercents.get("attention_decode")).toBeGreaterThan(0);
    const { DECODE_WARPS, WARP } = macrosOf("attention_decode.cu", { GROUP_SIZE: group, HEAD_DIM: headDim });
    expect(decode.block).toEqual([DECODE_WARPS! * WARP!, 1, 1]);
    const { partials, partial_stats, counters, ...rest } = namedArguments(decode);
    const common = {
      ...{ out: out.address, qkv: qkv.address, keys: cache.keys.address, values: cache.values.address },
      ...{ cos_sin: heads.cosSin.address, slot_mapping: step.slotMapping.address },
      ...{ block_tables: step.blockTables.address, row_slots: step.rowSlots.address },
      ...{ context_lens: step.contextLens.address, max_blocks: 64, window: 100 },
      ...{ scale_log2: f(headDim ** -0.5 * Math.LOG2E), min_split_tiles: minTiles },
      ...{ ...UNSCALED, ...PLAIN_SCORES, query_scales: 0 },
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
    expect(decodeSplits(1, 4, 132, { isWide: true })).toEqual({ splits: 66, minTiles: 4 });
    for (const rows of [1, 16, 4096]) {
      expect(decodeSplits(rows, 8, 132, { batchInvariant: true })).toEqual({ splits: 16, minTiles: 16 });
      // What scratch is allocated for.
      const { splits } = decodeSplits(rows, 8, 132);
      expect(splits === 1 || rows * 8 * splits <= 132 * 16).toBe(true);
    }
  });

  test("whose decode rows must not depend on each other cuts a row by its length alone", () => {
    using invariant = new FakeMachine();
    const other = invariant.backend("bfloat16", { batchInvariant: true });
    const scratchOf = (rows: number) => {
      const step = batch({ decodeRows: rows, prefill: [] });
      const { out, qkv, cache } = operands(step, 2, 64);
      other.attend(out, qkv, cache, step, spec(2, 64));
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

  test("of wide heads has the splits of its rows merged by a kernel of its own, where it cuts any", () => {
    const [step, headDim, group] = [batch({ decodeRows: 3, prefill: [] }), 512, 8];
    const { out, qkv, cache } = operands(step, group, headDim);
    const heads = spec(group, headDim, { window: 700 });
    const [decode, merge] = launches(() => backend.attend(out, qkv, cache, step, heads));
    const { splits, minTiles } = decodeSplits(3, 4, MULTIPROCESSORS, { isWide: true });
    expect(decode).toMatchObject({ entry: "attention_decode", grid: [4, 3, splits], block: [128, 1, 1] });
    const { MERGE_PAIRS, MERGE_PARTS, DECODE_SLICES } = macrosOf("attention_merge.cu", { HEAD_DIM: headDim });
    expect(DECODE_SLICES).toBe(4);
    expect(merge).toMatchObject({ entry: "attention_merge", block: [MERGE_PAIRS! * MERGE_PARTS!, 1, 1] });
    expect(merge!.grid).toEqual([(group * headDim) / 2 / MERGE_PAIRS!, 4, 3]);
    const { partials, partial_stats } = namedArguments(decode!);
    expect(namedArguments(merge!)).toEqual({
      ...{ out: out.address, partials: partials!, partial_stats: partial_stats!, sinks: 0, value_scale: 1 },
      ...{ row_slots: step.rowSlots.address, context_lens: step.contextLens.address, window: 700 },
      ...{ max_splits: splits, min_split_tiles: minTiles },
    });
    const many = batch({ decodeRows: 600, prefill: [] });
    const whole = operands(many, group, headDim);
    const alone = launches(() => backend.attend(whole.out, whole.qkv, whole.cache, many, heads));
    expect(alone.map(({ entry, grid }) => [entry, grid[2]])).toEqual([["attention_decode", 1]]);
  });

  test("over a cache that it only reads stores nothing, and begins with queries alone", () => {
    const step = batch({ decodeRows: 3, prefill: [40] });
    const [group, headDim] = [4, 64];
    const { out, cache } = operands(step, group, headDim);
    const qkv = bf16(step.numTokens, 4 * group * headDim);
    const [query, key] = [bf16(headDim), bf16(headDim)];
    const heads = { ...spec(group, headDim), readsOnly: true, headNorm: { query, eps: 1e-6 } };
    const [decode, store, prompt] = launches(() => backend.attend(out, qkv, cache, step, heads));
    expect(macrosOf("attention_decode.cu", { HEAD_DIM: headDim, READS_ONLY: 1 })).toMatchObject({
      GROUP_SIZE: group,
    });
    expect(namedArguments(decode!)).toMatchObject({ qkv: qkv.address, key_norm: 0 });
    expect(store!.entry).toBe("rope_store");
    const stored = { heads: 16, kv_heads: 0, qkv: qkv.address + 3 * 16 * headDim * 2, key_norm: 0 };
    expect(namedArguments(store!)).toMatchObject(stored);
    expect(namedArguments(prompt!)).toMatchObject({ qkv_heads: 16 });
    // The same heads with keys and values have kernels of their own.
    const own = operands(step, group, headDim).qkv;
    const storing = { ...spec(group, headDim), headNorm: { query, key, eps: 1e-6 } };
    const [, again, prompts] = launches(() => backend.attend(out, own, cache, step, storing));
    expect(namedArguments(again!)).toMatchObject({ heads: 16, kv_heads: 4 });
    expect(namedArguments(prompts!)).toMatchObject({ qkv_heads: 24 });
  });

  test("with norms of values has kernels that make them", () => {
    const step = batch({ decodeRows: 3, prefill: [40] });
    const [group, headDim] = [3, 64];
    const { out, qkv, cache } = operands(step, group, headDim);
    const headNorm = { query: bf16(headDim), key: bf16(headDim), eps: 1e-6, normsValues: true };
    requested.mockClear();
    backend.attend(out, qkv, cache, step, { ...spec(group, headDim), headNorm });
    backend.attend(out, qkv, cache, step, {
      ...spec(group, headDim),
      headNorm: { ...headNorm, normsValues: false },
    });
    const norms = requested.mock.calls
      .filter(([{ file }]) => /rotary|decode/.test(file))
      .map(([{ defines }]) => defines!["NORMS_VALUES"]);
    expect(norms).toEqual([1, 1, undefined, undefined]);
  });

  describe("over a cache in eight bits", () => {
    const scales = { keyScale: 0.25, valueScale: 0.125 };
    const scaled = { key_scale: 0.25, value_scale: 0.125 };

    test.each([64, 128, 256])("is other kernels, with scales, for heads of %d dimensions", (headDim) => {
      const step = batch({ decodeRows: 3, prefill: [700] });
      const { out, qkv } = operands(step, 2, headDim);
      const cache = float8Cache(4, headDim, scales);
      requested.mockClear();
      const all = launches(() => backend.attend(out, qkv, cache, step, spec(2, headDim)));
      expect(all.map(({ entry }) => entry)).toEqual([
        ...["attention_decode", "rope_store", "attention_prefill_hopper"],
      ]);
      for (const [{ defines }] of requested.mock.calls) expect(defines).toMatchObject({ CACHE_FLOAT8: 1 });
      const [decode, store, prefill] = all.map((each) => namedArguments(each));
      const scale_log2 = f(headDim ** -0.5 * 0.25 * Math.LOG2E);
      const pools = { keys: cache.keys.address, values: cache.values.address };
      expect(decode).toMatchObject({ ...pools, ...scaled, scale_log2 });
      expect(store).toMatchObject({ ...pools, ...scaled });
      expect(prefill).toMatchObject({ ...pools, value_scale: 0.125, scale_log2, maps: 0 });
      // As much as for 16 bits, and two tiles of codes.
      const [keys, queryStages] = headDim <= 128 ? [128, 2] : [64, 1];
      expect(all[2]!.sharedBytes).toBe(((128 * queryStages + 4 * keys) * 2 + 2 * keys) * headDim + 256);
      // A warp takes as many bytes at a time as it does of 16 bits.
      expect(
        macrosOf("attention_decode.cu", { HEAD_DIM: headDim, GROUP_SIZE: 2, CACHE_FLOAT8: 1 })["DECODE_TILE"],
      ).toBe(headDim <= 128 ? 32 : 16);
    });

    test("keeps codes in shared memory where there is no wgmma", () => {
      const step = batch({ decodeRows: 0, prefill: [700] });
      const { out, qkv } = operands(step, 2, 96);
      const cache = float8Cache(4, 96);
      requested.mockClear();
      const [, prefill] = launches(() => backend.attend(out, qkv, cache, step, spec(2, 96)));
      const macros = macrosOf("attention_prefill.cu", { HEAD_DIM: 96, GROUP_SIZE: 2, CACHE_FLOAT8: 1 });
      const { PREFILL_ROWS, PREFILL_KEYS } = macros;
      expect(prefill!.sharedBytes).toBe(PREFILL_ROWS! * (96 * 2 + 16) + 2 * PREFILL_KEYS! * (96 + 16));
      expect(namedArguments(prefill!)).toMatchObject({ value_scale: 1 });
    });

    test("and one of 16 bits have kernels of their own", () => {
      const step = batch({ decodeRows: 3, prefill: [] });
      const { out, qkv, cache } = operands(step, 2, 160);
      requested.mockClear();
      for (const each of [cache, float8Cache(4, 160, scales), cache, float8Cache(4, 160)])
        backend.attend(out, qkv, each, step, spec(2, 160));
      const compiled = requested.mock.calls.map(([{ defines }]) => defines!["CACHE_FLOAT8"]);
      expect(compiled).toEqual([undefined, 1]);
    });

    test("refuses scales that are no scale, and any for 16 bits", () => {
      const step = batch({ decodeRows: 3, prefill: [] });
      const { out, qkv, cache } = operands(step, 2, 128);
      const attend = (each: LayerCache) => () => backend.attend(out, qkv, each, step, spec(2, 128));
      for (const keyScale of [0, -1, Number.NaN, Infinity])
        expect(attend(float8Cache(4, 128, { keyScale }))).toThrow(InvariantError);
      expect(attend(float8Cache(4, 128, { valueScale: 0 }))).toThrow("attend: a scale of 0 for float8_e4m3");
      expect(attend({ ...cache, valueScale: 2 })).toThrow("attend: a scale of 2 for bfloat16");
    });
  });

  describe("with more than a rotation", () => {
    const [queryScales, sinks] = [f32(2048), f32(8)];
    /** Without rotation; of every head shape a test has a kernel of its own. */
    const formed = (headDim: number, form: Partial<AttentionSpec>) => {
      const step = batch({ decodeRows: 3, prefill: [700] });
      const { out, qkv, cache } = operands(step, 2, headDim);
      const heads = { numHeads: 8, numKvHeads: 4, headDim, scale: 0.5, window: 0 };
      requested.mockClear();
      const all = launches(() => backend.attend(out, qkv, cache, step, { ...heads, ...form }));
      return all.map((each, i) => ({
        given: namedArguments(each),
        defines: requested.mock.calls[i]?.[0].defines,
      }));
    };

    test("takes a soft cap as factors of both sides of tanh", () => {
      const [decode, store, prefill] = formed(64, { softCap: 20 });
      const scores = { scale_log2: f((2 * 0.5 * Math.LOG2E) / 20), cap_log2: f(20 * Math.LOG2E), sinks: 0 };
      for (const { given, defines } of [decode!, prefill!]) {
        expect(given).toMatchObject(scores);
        expect(defines).toMatchObject({ SOFT_CAP: 1 });
        expect(defines).not.toContainAnyKeys(["ATTENTION_SINKS", "QUERY_SCALES"]);
      }
      expect(store!.defines).not.toContainAnyKeys(["SOFT_CAP"]);
    });

    test("takes sinks and scales of queries", () => {
      const [decode, store, prefill] = formed(128, { sinks, queryScales });
      const [scores, scales] = [{ sinks: sinks.address }, { query_scales: queryScales.address }];
      expect(decode!.given).toMatchObject({
        ...scores,
        ...scales,
        scale_log2: f(0.5 * Math.LOG2E),
        cos_sin: 0,
      });
      expect(decode!.defines).toMatchObject({ ATTENTION_SINKS: 1, QUERY_SCALES: 1, ROTARY_DIM: 0 });
      expect(store!.given).toMatchObject({ ...scales, cos_sin: 0 });
      expect(store!.defines).toMatchObject({ QUERY_SCALES: 1, ROTARY_DIM: 0 });
      expect(prefill!.given).toMatchObject(scores);
      expect(prefill!.defines).toMatchObject({ ATTENTION_SINKS: 1 });
      expect(prefill!.defines).not.toContainAnyKeys(["SOFT_CAP", "QUERY_SCALES"]);
    });

    test("has kernels of its own", () => {
      const forms = [{}, { softCap: 5 }, { softCap: 6 }, { sinks }, { softCap: 5, sinks }, { queryScales }];
      const decodes = new Set<unknown>();
      for (const form of [...forms, ...forms]) {
        formed(96, form);
        for (const [{ file, defines }] of requested.mock.calls)
          if (file === "attention_decode.cu") decodes.add(JSON.stringify(defines));
      }
      expect(decodes.size).toBe(5);
    });

    test("is never part of a layer's launch", () => {
      const rows = batch({ decodeRows: 3, prefill: [] });
      const { out, qkv, cache } = operands(rows, 2, 64);
      const weight = denseWeight(bf16(1024, 512));
      const layer = launches(() => {
        backend.linear(qkv, bf16(3, 512), weight, { norm: { weight: bf16(512), eps: 1e-6 } });
        backend.attend(out, qkv, cache, rows, { ...spec(2, 64), sinks });
        backend.synchronize();
      });
      expect(layer.at(-1)!.entry).toBe("attention_decode");
    });
  });

  test("in a layer of few rows is part of one launch, unless it has no keys and values of its own", () => {
    const [rows, tokens] = [batch({ decodeRows: 3, prefill: [] }), 3];
    const [residual, { out, cache }] = [bf16(tokens, 512), operands(rows, 2, 64)];
    const activated = bf16(tokens, 1024);
    const weight = (n: number, k: number) => denseWeight(bf16(n, k));
    const norm = { weight: bf16(512), eps: 1e-6 };
    const layer = (projected: number, form: Partial<AttentionSpec>) =>
      launches(() => {
        const qkv = bf16(tokens, projected);
        backend.linear(qkv, residual, weight(projected, 512), { norm });
        backend.attend(out, qkv, cache, rows, { ...spec(2, 64), ...form });
        backend.linear(residual, out, weight(512, 512), { addTo: residual });
        backend.linear(activated, residual, weight(2048, 512), {
          norm,
          activation: { kind: "silu", gated: true },
        });
        backend.linear(residual, activated, weight(512, 1024), { addTo: residual });
        backend.synchronize();
      });
    // pending-layers.test.ts has the rest.
    const [whole, ...rest] = layer(1024, {});
    expect(whole).toMatchObject({ entry: "decode_layers", grid: [MULTIPROCESSORS, 1, 1] });
    expect(rest).toEqual([]);
    const reader = layer(512, { readsOnly: true }).map(({ entry }) => entry);
    expect(reader).toContain("attention_decode");
    expect(reader).not.toContain("decode_layers");
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
