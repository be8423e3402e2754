import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { idleTimes, profile, summarize } from "../../bench/profile.ts";
import { Profiler } from "../../bench/profiling-backend.ts";
import { streams } from "../../bench/workload.ts";
import { CpuBackend } from "../../src/backend/cpu/cpu-backend.ts";
import { FakeGpu } from "./fake-gpu.ts";

setDefaultTimeout(300_000);

describe("profile", () => {
  test("finds steps, gaps and op classes of the embedded model", async () => {
    const gpu = new FakeGpu();
    const options = { maxModelLen: 64, maxNumSeqs: 2, enablePrefixCaching: false };
    const limits = { bytesPerSecond: 1e9, flopsPerSecond: 1e12 };
    const openBackend = () => gpu;
    const { idle, decode } = await profile(undefined, options, [streams(2, 4, 6)], [2, 1], {
      limits,
      openBackend,
    });
    expect(gpu.liveMarks).toBe(0);

    // A prompt step and five decode steps, with nothing between them.
    expect(idle).toHaveLength(1);
    expect(idle[0]).toMatchObject({ workload: "2x4+6", steps: 6, p50: 0 });

    const layers = 6;
    expect(decode.map(({ batch }) => batch)).toEqual([2, 1]);
    for (const { classes, graphMilliseconds, opMilliseconds, contextTokens, limitMilliseconds } of decode) {
      const byName = Object.fromEntries(classes.map((entry) => [entry.class, entry]));
      expect(byName["attention"]).toMatchObject({ ops: layers, milliseconds: 3 * layers });
      expect(byName["linear"]).toMatchObject({ ops: 4 * layers, milliseconds: 4 * layers });
      expect(byName["LM head"]).toMatchObject({ ops: 1, milliseconds: 1 });
      // Greedy tokens are drawn with the LM head.
      expect(byName["sampling"]).toBeUndefined();
      const parts = ["linear", "attention", "LM head"].map((name) => byName[name]!.limitMilliseconds!);
      expect(Math.min(...parts)).toBeGreaterThan(0);
      expect(limitMilliseconds).toBeCloseTo(
        parts.reduce((total, part) => total + part),
        9,
      );
      expect(byName["batch update"]!.limitMilliseconds).toBeUndefined();
      expect(graphMilliseconds).toBe(7 * layers + 1);
      expect(opMilliseconds).toBe(graphMilliseconds);
      expect(classes.reduce((total, { share }) => total + share, 0)).toBeCloseTo(1, 9);
      expect(contextTokens).toBeGreaterThan(16);
    }
  });

  test("refuses a backend without timestamps", () => {
    expect(() => new Profiler().wrap(new CpuBackend())).toThrow("cannot be timed");
  });
});

test("idle times leave out what comes before the first step", () => {
  const steps = [undefined, 0.001, 0.003, 0.002].map((idle) => ({ busy: 2, idle }));
  const times = idleTimes("w", steps);
  expect(times).toMatchObject({ workload: "w", steps: 4, busySeconds: 0.008 });
  expect([times.p50, times.max, times.idleSeconds * 1e6].map(Math.round)).toEqual([2, 3, 6]);
});

test("shares are medians over the steps of the full batch", () => {
  const step = (rows: number, attention: number) => ({
    rows,
    ops: [
      { class: "linear" as const, milliseconds: 1 },
      { class: "attention" as const, milliseconds: attention / 2 },
      { class: "attention" as const, milliseconds: attention / 2 },
    ],
  });
  const eager = [step(4, 3), step(4, 100), step(4, 2), step(1, 50)];
  const shares = summarize(4, 10, { eager, graph: [3, 9, 4] });
  expect(shares).toMatchObject({ samples: 3, graphMilliseconds: 4, opMilliseconds: 4 });
  expect(shares.classes.map(({ class: name, ops, share }) => [name, ops, share])).toEqual([
    ["attention", 2, 0.75],
    ["linear", 1, 0.25],
  ]);
});
