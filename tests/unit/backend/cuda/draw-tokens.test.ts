import { afterAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import type { Tensor } from "../../../../src/backend/tensor.ts";
import { denseWeight } from "../../../../src/backend/weight.ts";
import { FakeMachine } from "./fake-machine.ts";
import { FakeOperands } from "./fake-operands.ts";
import { namedArguments } from "./kernel-signatures.ts";
import { LaunchRecorder, MULTIPROCESSORS } from "./launch-recorder.ts";

setDefaultTimeout(300_000);

const recorder = new LaunchRecorder();
afterAll(() => recorder[Symbol.dispose]());
const { machine, backend, launches } = recorder;
const { bf16, f32, i32, slotTables, sampleRows } = new FakeOperands();
const f = Math.fround;
const address = (tensor: Tensor) => tensor.address;

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
      ...{
        params: address(slots.params),
        tokens: rows,
        vocab,
        first_token: 0,
        trigger_early: 0,
        ...{ eps: f(1e-6), cap: 0 },
      },
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
    [256, 75_968, 1024, [256]],
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
          ...{ params: address(slots.params), tokens: parts[i]!, vocab, first_token: 0 },
          ...{ tiles: Math.ceil(vocab / 128), k_tiles: width / 64, cap: 0 },
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

  test.each([3, 9])("%d rows of capped logits, in the same way or capped by a kernel", (rows) => {
    const drawWith = (vocab: number, softCap: number) => {
      const head = {
        weight: denseWeight(bf16(vocab, 1024)),
        norm: { weight: bf16(1024), eps: 1e-6 },
        softCap,
      };
      const [x, logits, slots] = [bf16(rows, 1024), f32(rows, vocab), slotTables(vocab)];
      return launches(() => backend.drawTokens(i32(rows), x, head, logits, sampleRows(rows), slots));
    };
    const [draw] = drawWith(2560, 30).filter(({ entry }) => entry.startsWith("draw_"));
    expect(namedArguments(draw!)).toMatchObject({ cap: 30 });
    const parts = drawWith(2001, 30);
    expect(parts.map(({ entry }) => entry)).toContain("cap_logits");
  });

  test("by a head of any other size at the same address", () => {
    const [rows, memory] = [9, bf16(2560 * 64)];
    const mapped = (vocab: number, width: number) => {
      const weight = denseWeight(memory.rows(0, vocab * width).reshape(vocab, width));
      const [head, slots] = [{ weight, norm: { weight: bf16(width), eps: 1e-6 } }, slotTables(vocab)];
      const [x, logits] = [bf16(rows, width), f32(rows, vocab)];
      const all = launches(() => backend.drawTokens(i32(rows), x, head, logits, sampleRows(rows), slots));
      const { maps } = namedArguments(all.find(({ entry }) => entry === "draw_wgmma")!);
      const [at, , , ...extents] = new BigUint64Array(machine.cuda.bytesOf(maps!).slice().buffer);
      expect([at, ...extents.slice(0, 2)]).toEqual([memory.address, width, vocab].map(BigInt));
      return maps;
    };
    const sizes = [
      [1280, 64],
      [2560, 64],
      [1280, 128],
    ] as const;
    const all = () => sizes.map(([vocab, width]) => mapped(vocab, width));
    // Each is known from the first time on.
    expect(all()).toEqual(all());
  });

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
    const other = fresh.backend();
    const [vocab, width] = [2560, 512];
    const head = { weight: denseWeight(bf16(vocab, width)), norm: { weight: bf16(width), eps: 1e-6 } };
    const [slots, x, logits, out] = [slotTables(vocab), bf16(256, width), f32(256, vocab), i32(256)];
    const run = (rows: number) => {
      const first = (tensor: Tensor) => tensor.rows(0, rows);
      other.drawTokens(first(out), first(x), head, first(logits), sampleRows(rows), slots);
    };
    run(256);
    const calls = () =>
      (["cuMemAlloc_v2", "cuMemcpyHtoDAsync_v2"] as const).map((call) => fresh.cuda.count(call));
    const before = calls();
    for (const rows of [1, 8, 9, 64, 65, 128, 200]) run(rows);
    expect(calls()).toEqual(before);
  });

  test.each([
    ["more rows by a vocabulary that is no whole number of warps' parts", 9, 151_944, 1024],
    ["a vocabulary that is no whole number of tiles", 1, 151_937, 1024],
    ["a width that is no whole number of chunks", 8, 151_936, 1000],
  ])("for %s from logits, unprocessed", (_, rows, vocab, width) => {
    const { all, logits } = draw(rows, vocab, width);
    expect(all.map(({ entry }) => entry)).toEqual(["rms_norm", "sample_tiles", "sample_rows"]);
    expect(namedArguments(all[1]!)).toMatchObject({ logits: address(logits), processed: address(logits) });
  });
});
