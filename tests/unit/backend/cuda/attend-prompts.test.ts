import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { attendMachine, PLAIN_SCORES, storeOf, UNSCALED } from "./attend-machine.ts";
import { FakeMachine } from "./fake-machine.ts";
import { namedArguments } from "./kernel-signatures.ts";
import { MULTIPROCESSORS } from "./launch-recorder.ts";

setDefaultTimeout(300_000);

const { machine, backend, launches, fakes, spec, operands, macrosOf } = attendMachine();
const { bf16, batch, float8Cache } = fakes;
const f = Math.fround;

describe("attend", () => {
  test.each([
    [64, 64],
    [128, 128],
    [128, 64],
    [96, 96],
    [512, 512],
    [96, 32],
  ])("of prompts begins with heads of %d dimensions, %d of them rotated", (headDim, rotaryDim) => {
    const step = batch({ decodeRows: 5, prefill: [40] });
    const { out, qkv, cache } = operands(step, 4, headDim);
    const [query, key] = [bf16(headDim), bf16(headDim)];
    const bare = spec(4, headDim, { rotaryDim });
    const headNorm = { query, key, eps: 1e-6 };
    const stored = storeOf(launches(() => backend.attend(out, qkv, cache, step, { ...bare, headNorm })));
    const wanted = { HEAD_DIM: headDim, ROTARY_DIM: rotaryDim, ROPE_HEADS: 1 };
    const { HEAD_LANES, ROPE_THREADS } = macrosOf("rotary.cu", wanted);
    expect(stored).toMatchObject({ entry: "rope_store", block: [ROPE_THREADS!, 1, 1] });
    expect(stored!.grid).toEqual([Math.ceil((40 * (16 + 8) * HEAD_LANES!) / ROPE_THREADS!), 1, 1]);
    // Of the tokens after the decode rows.
    const width = (16 + 8) * headDim;
    const common = {
      ...{ qkv: qkv.address + 5 * width * 2, keys: cache.keys.address, values: cache.values.address },
      ...{ cos_sin: bare.cosSin.address, positions: step.positions.address + 20 },
      ...{ slot_mapping: step.slotMapping.address + 20, tokens: 40 },
      ...{ heads: 16, kv_heads: 4, block_size: 16, query_scales: 0 },
      ...UNSCALED,
    };
    const norms = { query_norm: query.address, key_norm: key.address, eps: f(1e-6) };
    expect(namedArguments(stored!)).toEqual({ ...common, ...norms });
    const unnormed = storeOf(launches(() => backend.attend(out, qkv, cache, step, bare)));
    expect(namedArguments(unnormed!)).toEqual({ ...common, query_norm: 0, key_norm: 0, eps: 0 });
  });

  test.each([
    [64, 64, 16],
    [128, 128, 8],
    [96, 32, 4],
  ])(
    "of long prompts with heads of %d dimensions, %d of them rotated, takes several a thread",
    (headDim, rotaryDim, group) => {
      const step = batch({ decodeRows: 0, prefill: [4000] });
      const { out, qkv, cache } = operands(step, group, headDim);
      const [stored] = launches(() =>
        backend.attend(out, qkv, cache, step, spec(group, headDim, { rotaryDim })),
      );
      const wanted = { HEAD_DIM: headDim, ROTARY_DIM: rotaryDim, ROPE_HEADS: 4 };
      const { HEAD_LANES, ROPE_THREADS } = macrosOf("rotary.cu", wanted);
      const groups = Math.ceil((4 * group + 8) / 4);
      expect(stored!.grid).toEqual([Math.ceil((4000 * groups * HEAD_LANES!) / ROPE_THREADS!), 1, 1]);
      expect(namedArguments(stored!)).toMatchObject({ tokens: 4000, heads: 4 * group, kv_heads: 4 });
    },
  );

  const PROMPTS = [
    [[1], 1, 64],
    [[5, 700], 2, 128],
    [[16384], 8, 256],
    [[64, 64, 64], 7, 96],
  ] as const;

  /** What a block of 8.0, of 8.6 and of 9.0 has of shared memory, and rows, keys and warps of its tile of wide heads. */
  const TILES = [
    [227, false, [64, 64, 8]],
    [163, false, [64, 32, 8]],
    [99, false, [32, 32, 4]],
    [163, true, [64, 64, 8]],
    [99, true, [32, 32, 4]],
  ] as const;

  test.each(TILES)(
    "of prompts with wide heads takes what %d KiB hold, in eight bits: %p",
    (kib, isFloat8, [rows, keys, warps]) => {
      const step = batch({ decodeRows: 0, prefill: [700] });
      const [group, headDim] = [8, 512];
      const { out, qkv, cache } = operands(step, group, headDim);
      using older = new FakeMachine({ computeCapability: [8, 0], sharedBytesPerBlock: kib * 1024 });
      older
        .backend()
        .attend(out, qkv, isFloat8 ? float8Cache(4, headDim) : cache, step, spec(group, headDim));
      const prompt = older.cuda.launches.at(-1)!;
      expect(prompt).toMatchObject({ entry: "attention_prefill", block: [warps * 32, 1, 1] });
      expect(prompt.grid).toEqual([Math.ceil((700 * group) / rows), 4, 1]);
      // Queries, keys and values, probabilities, and what the two warps of a row tell each other.
      const tiles = (rows * 2 + 2 * keys * (isFloat8 ? 1 : 2)) * headDim;
      expect(prompt.sharedBytes).toBe(tiles + rows * keys * 2 + rows * 2 * 4);
      expect(prompt.sharedBytes).toBeLessThanOrEqual(kib * 1024);
    },
  );

  test("of prompts with wide heads on Hopper is by pairs of blocks, each with half of the dimensions", () => {
    const step = batch({ decodeRows: 0, prefill: [700] });
    const { out, qkv, cache } = operands(step, 8, 512);
    const [, prompt] = launches(() => backend.attend(out, qkv, cache, step, spec(8, 512)));
    const grid = [2 * Math.min(MULTIPROCESSORS / 2, Math.ceil((700 * 8) / 128) * 4), 1, 1];
    expect(prompt).toMatchObject({ entry: "attention_prefill_hopper", grid, block: [384, 1, 1] });
    expect(macrosOf("attention_prefill_hopper.cu", { HEAD_DIM: 512 })).toMatchObject({ PREFILL_CLUSTER: 2 });
    // As much as for 256 dimensions, and a tile's scores.
    expect(prompt!.sharedBytes).toBe((128 + 4 * 64) * 256 * 2 + 128 * 64 * 4 + 256);
    backend.attend(out, qkv, float8Cache(4, 512), step, spec(8, 512));
    expect(machine.cuda.launches.at(-1)!.entry).toBe("attention_prefill");
  });

  test.each(PROMPTS)(
    "of prompts of %p tokens after 3 decode rows, before Hopper",
    (prefill, group, headDim) => {
      const step = batch({ decodeRows: 3, prefill });
      const { out, qkv, cache } = operands(step, group, headDim);
      using older = new FakeMachine({ computeCapability: [8, 0] });
      const other = older.backend();
      other.attend(out, qkv, cache, step, spec(group, headDim));
      const prompt = older.cuda.launches.at(-1);
      const rows = headDim <= 128 ? 128 : 64;
      const tiles = Math.ceil((step.maxQueryLen * group) / rows);
      expect(prompt).toMatchObject({ entry: "attention_prefill", grid: [tiles, 4, prefill.length] });
      const macros = macrosOf("attention_prefill.cu", { GROUP_SIZE: group, HEAD_DIM: headDim });
      const { PREFILL_ROWS, PREFILL_KEYS, PREFILL_WARPS, WARP } = macros;
      expect(prompt!.block).toEqual([PREFILL_WARPS! * WARP!, 1, 1]);
      // As the kernel's comment has it, in elements of 2 bytes, and 16 bytes between rows.
      expect(prompt!.sharedBytes).toBe((PREFILL_ROWS! + 2 * PREFILL_KEYS!) * (headDim * 2 + 16));
      expect(namedArguments(prompt!)).toEqual({
        ...{ out: out.address, qkv: qkv.address, keys: cache.keys.address, values: cache.values.address },
        ...{ block_tables: step.blockTables.address, row_slots: step.rowSlots.address },
        ...{ cu_seqlens_q: step.cuSeqlensQ.address, context_lens: step.contextLens.address },
        ...{ qkv_heads: 4 * group + 8, first_row: 3, max_blocks: 64, window: 0, value_scale: 1 },
        ...{ scale_log2: f(headDim ** -0.5 * Math.LOG2E), ...PLAIN_SCORES },
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
      qkv_heads: 4 * group + 8,
      ...{ block_tables: step.blockTables.address, row_slots: step.rowSlots.address },
      ...{ cu_seqlens_q: step.cuSeqlensQ.address, context_lens: step.contextLens.address },
      ...{ first_row: 3, max_blocks: 64, scale_log2: f(headDim ** -0.5 * Math.LOG2E), window: 0 },
      ...{ keys: cache.keys.address, values: cache.values.address, value_scale: 1, ...PLAIN_SCORES },
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
});
