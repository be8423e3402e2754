import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { closeSync, openSync, writeFileSync } from "node:fs";
import { CpuBackend } from "../../../src/backend/cpu/cpu-backend.ts";
import { floats } from "../../../src/backend/cpu/host-buffer.ts";
import type { Tensor } from "../../../src/backend/tensor.ts";
import type { Fp8Weight } from "../../../src/backend/weight.ts";
import { type FloatDType, narrow, widen } from "../../../src/base/dtype.ts";
import { FLOAT8_VALUES } from "../../../src/base/float8.ts";
import type { ParameterSpec } from "../../../src/base/parameter-spec.ts";
import type { Span } from "../../../src/base/shard.ts";
import type { OnlineFloat8 } from "../../../src/layers/schemes/online-float8.ts";
import { StoredScheme } from "../../../src/layers/schemes/stored-scheme.ts";
import { LM_HEAD } from "../../../src/layers/weight-scheme.ts";
import { Checkpoint } from "../../../src/loader/checkpoint.ts";
import { readFloat8 } from "../../../src/loader/readings/float8.ts";
import { directoryOf } from "../../../src/loader/tensor-directory.ts";
import { loadWeights } from "../../../src/loader/weights.ts";
import { Random } from "../../contract/random.ts";
import { temporaryFolder } from "../../support.ts";
import { safetensors, type TensorData } from "../loader/support.ts";

setDefaultTimeout(300_000);

const ROWS = 192;
const COLUMNS = 320;
const STORED = { F32: "float32", BF16: "bfloat16", F16: "float16" } as const;

/** Values whose size differs from block to block and channel to channel; one channel, and one block, is of zeros. */
function matrix(dtype: keyof typeof STORED): { readonly data: Uint8Array; readonly values: Float32Array } {
  const values = new Random(5).normals(ROWS * COLUMNS).map((value, i) => {
    const [row, column] = [Math.floor(i / COLUMNS), i % COLUMNS];
    if (row === 3 || (row >= 128 && column >= 256)) return 0;
    return value * 2 ** ((Math.floor(row / 64) + Math.floor(column / 128) + (row % 5)) % 7);
  });
  const data = narrow(values, STORED[dtype]);
  widen(data, STORED[dtype] as FloatDType, values);
  return { data, values };
}

async function load(
  tensors: Record<string, TensorData>,
  online: OnlineFloat8,
  rowSpan: Span,
  columnSpan: Span,
) {
  using folder = temporaryFolder();
  writeFileSync(folder.file("model.safetensors"), safetensors(tensors));
  using checkpoint = Checkpoint.open(folder.path);
  const scheme = new StoredScheme(directoryOf(checkpoint), { online });
  const parts = [{ source: "m", rows: ROWS, rowSpan }];
  const spec = { name: "m", parts, columns: COLUMNS, columnSpan };
  const specs: ParameterSpec[] = [];
  scheme.weight(spec, (each) => {
    specs.push(each);
    return {} as Tensor;
  });
  const backend = new CpuBackend();
  const loaded = await loadWeights(checkpoint, specs, backend, { dtype: "float32", ignored: [] });
  return scheme.weight(spec, (each) => loaded.get(each.name)!) as Fp8Weight;
}

const ALL_ROWS = { start: 0, end: ROWS };
const ALL_COLUMNS = { start: 0, end: COLUMNS };

describe.each(["channel", "block"] as const)("by each %s", (online) => {
  test.each(["F32", "BF16", "F16"] as const)("%s, the largest of each becomes ±448", async (dtype) => {
    const { data, values } = matrix(dtype);
    for (const [rows, columns] of [
      [ALL_ROWS, ALL_COLUMNS],
      [{ start: 64, end: 192 }, ALL_COLUMNS],
      [ALL_ROWS, { start: 128, end: 320 }],
    ] as const) {
      const weight = await load(
        { "m.weight": { dtype, shape: [ROWS, COLUMNS], data } },
        online,
        rows,
        columns,
      );
      const [n, k] = weight.shape;
      const { blockRows, blockColumns } = weight;
      expect([blockRows, blockColumns]).toEqual(
        online === "channel" ? [1, k] : [rows.start === 64 ? 64 : 128, 128],
      );
      const codes = new Uint8Array(weight.data.buffer.host!);
      const scales = floats(weight.scales);
      const largest = new Map<number, number>();
      for (let row = 0; row < n; row++) {
        for (let column = 0; column < k; column++) {
          const scale =
            Math.floor(row / blockRows) * Math.ceil(k / blockColumns) + Math.floor(column / blockColumns);
          const value = values[(rows.start + row) * COLUMNS + columns.start + column]!;
          const code = FLOAT8_VALUES[codes[row * k + column]!]!;
          // Half a step: 2^-4 of a normal value, 2^-10 of a subnormal one.
          const step = Math.max(Math.abs(value / scales[scale]!) * 2 ** -4, 2 ** -10);
          expect(Math.abs(code - value / scales[scale]!)).toBeLessThanOrEqual(step * 1.0001);
          largest.set(scale, Math.max(largest.get(scale) ?? 0, Math.abs(code)));
        }
      }
      expect(largest.size).toBe(scales.length);
      for (const [scale, most] of largest) {
        if (most === 0) expect(scales[scale]).toBe(1);
        else expect(most).toBe(448);
      }
    }
  });
});

test("rows that the file stores in pairs are quantised in their order", async () => {
  using folder = temporaryFolder();
  const [n, k, group] = [16, 4, 8];
  // Row r of a group is stored at 2r of its first half, at 2(r − 4) + 1 of its second.
  const rowAt = Array.from({ length: n }, (_, place) => {
    const inGroup = place % group;
    return place - inGroup + (inGroup % 2) * (group / 2) + Math.floor(inGroup / 2);
  });
  writeFileSync(
    folder.file("m"),
    Float32Array.from({ length: n * k }, (_, i) => 1 + rowAt[Math.floor(i / k)]!),
  );
  const fd = openSync(folder.file("m"), "r");
  const tensor = {
    name: "m",
    path: folder.file("m"),
    fd,
    dtype: "F32",
    shape: [n, k],
    begin: 0,
    end: 4 * n * k,
  };
  const reading = {
    ...({ kind: "float8", part: "scales", blockRows: 1, blockColumns: k } as const),
    ...{ rows: { start: 0, end: n }, columns: { start: 0, end: k } },
  };
  const target = new Uint8Array(4 * n);
  readFloat8({ ...tensor, pairedRows: group }, reading, { start: 0, end: n }, target);
  closeSync(fd);
  expect([...new Float32Array(target.buffer)]).toEqual(
    Array.from({ length: n }, (_, row) => Math.fround((1 + row) / 448)),
  );
});

test("a value that is not finite is refused", async () => {
  for (const value of [Number.NaN, Infinity]) {
    const { values } = matrix("F32");
    values[5000] = value;
    const tensors: Record<string, TensorData> = {
      "m.weight": { dtype: "F32", shape: [ROWS, COLUMNS], data: values },
    };
    await expect(load(tensors, "channel", ALL_ROWS, ALL_COLUMNS)).rejects.toThrow(
      'tensor "m.weight" has a value that is no finite number',
    );
  }
});

test.each([
  ["the LM head stays in floats", { online: "block" }, LM_HEAD, "dense"],
  ["unless that is asked for, by channels", { online: "block", quantiseHead: true }, LM_HEAD, "fp8"],
  ["and then alone", { quantiseHead: true }, "m", "dense"],
] as const)("%s", (_, options, name, format) => {
  using folder = temporaryFolder();
  const { data } = matrix("BF16");
  const stored = { dtype: "BF16", shape: [ROWS, COLUMNS], data } as const;
  writeFileSync(folder.file("model.safetensors"), safetensors({ "m.weight": stored }));
  using checkpoint = Checkpoint.open(folder.path);
  const scheme = new StoredScheme(directoryOf(checkpoint), options);
  const parts = [{ source: "m", rows: ROWS, rowSpan: ALL_ROWS }];
  const weight = scheme.weight(
    { name, parts, columns: COLUMNS, columnSpan: ALL_COLUMNS },
    ({ shape }) => ({ shape, dim: (i: number) => shape[i] }) as unknown as Tensor,
  );
  expect(weight.format).toBe(format);
  if (weight.format === "fp8") expect(weight.blockColumns).toBe(COLUMNS);
});
