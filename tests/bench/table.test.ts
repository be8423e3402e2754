import { expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";
import { type Results, ROWS, summarizeRow } from "../../bench/table.ts";
import { ExitCode } from "../../src/base/errors.ts";
import { openCuda } from "../../src/cuda/open-cuda.ts";
import { available } from "../requirements.ts";

setDefaultTimeout(300_000);

function throughput(workload: string, seconds: number) {
  const limit = { seconds: seconds / 2, tokensPerSecond: 2000 } as never;
  const sizes = { requests: 1, promptTokens: 1, outputTokens: 1 };
  return { workload, ...sizes, seconds: [seconds, seconds, 99], tokensPerSecond: 1000, limit, ratio: 0.5 };
}

function kernel(name: string, microseconds: number) {
  return {
    ...{ group: "g", name, bytes: 2e6, flops: 3e9, microseconds, fastest: 1 },
    ...{ limitMicroseconds: microseconds / 2, share: 0.5 },
  };
}

const RESULTS: Results = {
  throughput: [
    ...[throughput("nano-vllm", 6), throughput("1x32+128", 0.1), throughput("1x1024+1", 0.004)],
    ...[throughput("1x32768+1", 0.3), throughput("1x32768+65", 0.428)],
    ...[throughput("16x16384+1", 1.2), throughput("16x16384+65", 1.84)],
    ...[throughput("64x32+1", 0.006), throughput("64x32+65", 0.07)],
    ...[throughput("64x32+1:logprobs", 0.006), throughput("64x32+65:logprobs", 0.0764)],
  ],
  idle: [{ workload: "nano-vllm", steps: 3, p50: 8, p99: 15, max: 20, busySeconds: 1, idleSeconds: 1 }],
  kernels: [
    ...[1, 150, 500].map((step) => kernel(`nano-vllm step ${step}, 9 rows`, 10 * step)),
    ...[2048, 8192, 16384, 32768].map((length) => kernel(`${length} tokens`, length)),
    ...[2048, 8192, 16384, 32768].map((length) => kernel(`window of 1, ${length} tokens`, length / 2)),
    ...[1, 256].flatMap((rows) => [
      kernel(`temperature, flat logits, ${rows} rows`, 10),
      kernel(`top-k + top-p, flat logits, ${rows} rows`, 10 + rows),
      kernel(`temperature, Zipf logits, ${rows} rows`, 10),
      kernel(`top-k + top-p, Zipf logits, ${rows} rows`, 10 + rows / 2),
    ]),
  ],
  total: 900,
};

test("every row is read from the records of its run", () => {
  const values = Object.fromEntries(ROWS.map(({ name, read }) => [name, read(RESULTS)]));
  expect(values["nano-vLLM workload, 0.6B"]).toEqual({ value: 1000, limit: 2000 });
  expect(values["first token, prompt of 32k"]).toEqual({ value: 300, limit: 150 });
  expect(values["decode step, 1 × 32k"]!.value).toBeCloseTo(2, 9);
  expect(values["decode step, 1 × 32k"]!.limit).toBeCloseTo(1, 9);
  expect(values["decode step, 16 × 16k"]!.value).toBeCloseTo(10, 9);
  expect(values["decode attention, step 150"]).toEqual({ value: 2 / 1500, limit: 2 / 750 });
  expect(values["prefill attention, 8192 tokens"]).toEqual({ value: 3000 / 8192, limit: 6000 / 8192 });
  expect(values["the same without norm, rotation, store, 8192"]!.value).toBe(3000 / 4096);
  expect(values["GPU idle between steps, p99"]).toEqual({ value: 15 });
  expect(values["step of 64 with one log-probability row"]!.value).toBeCloseTo(1.1, 9);
  expect(values["top-k + top-p over temperature, 256 rows"]).toEqual({ value: 256 });
  expect(values["first token of a 1.2 GB model"]).toEqual({ value: 900 });
  for (const { value } of Object.values(values)) expect(value).toBeGreaterThan(0);
});

test("a row is the median of its processes; its share that of the limit's rate", () => {
  const samples = [10, 30, 20].map((value) => ({ value, limit: 40 }));
  const rate = summarizeRow({ name: "r", unit: "tokens/s" }, samples);
  expect(rate).toEqual({
    name: "r",
    unit: "tokens/s",
    value: 20,
    limit: 40,
    share: 0.5,
    samples: [10, 30, 20],
  });
  const time = summarizeRow({ name: "t", unit: "ms" }, [{ value: 50, limit: 40 }]);
  expect(time.share).toBe(0.8);
  expect(summarizeRow({ name: "u", unit: "µs" }, [{ value: 5 }])).toEqual({
    ...{ name: "u", unit: "µs", value: 5, samples: [5] },
  });
});

test.skipIf(typeof available(openCuda) !== "string")(
  "says that there is no GPU before it runs anything",
  () => {
    const args = [process.execPath, "run", join(import.meta.dir, "../../bench/table.ts")];
    const { exitCode, stdout, stderr } = Bun.spawnSync(args, { timeout: 120_000 });
    expect([exitCode, stdout.toString()]).toEqual([ExitCode.device, ""]);
    expect(stderr.toString()).toContain("NVIDIA");
  },
);
