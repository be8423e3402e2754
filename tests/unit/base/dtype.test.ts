import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { dtypeSize, type FloatDType, narrow, toBfloat16, widen } from "../../../src/base/dtype.ts";
import { roundoff } from "../../contract/compare.ts";

setDefaultTimeout(300_000);

const HALVES = ["bfloat16", "float16"] as const;
const DTYPES: readonly FloatDType[] = ["float32", ...HALVES];

function widened(bytes: Uint8Array, dtype: FloatDType): Float32Array {
  const target = new Float32Array(bytes.byteLength / dtypeSize(dtype));
  widen(bytes, dtype, target);
  return target;
}

const narrowed = (values: readonly number[], dtype: FloatDType) =>
  widened(narrow(Float32Array.from(values), dtype), dtype);

/** The bits of `values` in a 16-bit dtype. */
const bits = (values: readonly number[], dtype: FloatDType) => [
  ...new Uint16Array(narrow(Float32Array.from(values), dtype).buffer as ArrayBuffer),
];

test("sizes and roundoff", () => {
  expect((["float32", "bfloat16", "float16", "int32", "uint32"] as const).map(dtypeSize)).toEqual([
    4, 2, 2, 4, 4,
  ]);
  for (const dtype of DTYPES) {
    // Half a unit in the last place is the last addend that vanishes.
    expect(narrowed([1 + roundoff(dtype)], dtype)[0]).toBe(1);
    expect(narrowed([Math.fround(1 + 2 * roundoff(dtype))], dtype)[0]).toBe(1 + 2 * roundoff(dtype));
  }
});

describe.each(HALVES)("%s", (dtype) => {
  test("all 65,536 bit patterns survive widening and narrowing", () => {
    const all = Uint16Array.from({ length: 65536 }, (_, i) => i);
    const wide = widened(new Uint8Array(all.buffer), dtype);
    const back = new Uint16Array(narrow(wide, dtype).buffer as ArrayBuffer);
    for (let i = 0; i < 65536; i++) {
      if (Number.isNaN(wide[i]))
        expect(widened(new Uint8Array(back.slice(i, i + 1).buffer), dtype)[0]).toBeNaN();
      else if (back[i] !== i) throw new Error(`${i} became ${back[i]} by way of ${wide[i]}`);
    }
  });

  test("NaN, infinities and signed zeros keep their kind", () => {
    const values = [Number.NaN, Infinity, -Infinity, 0, -0];
    expect([...narrowed(values, dtype)]).toEqual(values);
    expect([...narrowed([3e38 * 2, -3e38 * 2], dtype)]).toEqual([Infinity, -Infinity]);
  });

  test("a view at an odd offset reads the same, Buffer or not", () => {
    const values = Float32Array.from([1.5, -2.25, 1024, 0]);
    const bytes = narrow(values, dtype);
    for (const storage of [new Uint8Array(bytes.length + 3), Buffer.alloc(bytes.length + 3)]) {
      storage.set(bytes, 1);
      expect([...widened(storage.subarray(1, 1 + bytes.length), dtype)]).toEqual([...values]);
    }
  });
});

test("float16: known values, subnormals, overflow, and ties to even", () => {
  const min = 2 ** -24;
  expect(bits([1, -2, 65504, 2 ** -14, min], "float16")).toEqual([0x3c00, 0xc000, 0x7bff, 0x0400, 0x0001]);
  expect(bits([65519, 65520, -65520], "float16")).toEqual([0x7bff, 0x7c00, 0xfc00]);
  expect(bits([1 + 2 ** -11, 1 + 3 * 2 ** -11], "float16")).toEqual([0x3c00, 0x3c02]);
  expect(bits([min / 2, min * 1.5, min * 2.5], "float16")).toEqual([0, 2, 2]);
});

test("bfloat16: known values, subnormals, overflow, and ties to even", () => {
  const min = 2 ** -133;
  expect(bits([1, -2, 3.140625, min], "bfloat16")).toEqual([0x3f80, 0xc000, 0x4049, 0x0001]);
  expect(bits([1 + 2 ** -8, 1 + 3 * 2 ** -8], "bfloat16")).toEqual([0x3f80, 0x3f82]);
  expect(bits([min / 2, min * 1.5, -min * 2.5], "bfloat16")).toEqual([0, 2, 0x8002]);
  expect(bits([3.4028234663852886e38, -3.4028234663852886e38], "bfloat16")).toEqual([0x7f80, 0xff80]);
});

test("a NaN whose payload sits in the lost bits stays a NaN in bfloat16", () => {
  const payload = new Float32Array(Uint32Array.of(0x7f800001, 0xff800001).buffer);
  expect(toBfloat16(payload[0]!)).toBeGreaterThan(0x7f80);
  expect([...widened(narrow(payload, "bfloat16"), "bfloat16")]).toEqual([Number.NaN, Number.NaN]);
});

test("float32 passes through bit by bit, at any offset, into copies", () => {
  const values = Float32Array.from([Math.PI, -0, Number.NaN, Infinity, 1e-45]);
  const bytes = narrow(values, "float32");
  const shifted = new Uint8Array(bytes.length + 1);
  shifted.set(bytes, 1);
  expect([...widened(shifted.subarray(1), "float32")]).toEqual([...values]);
  bytes.fill(0);
  expect(values[0]).toBe(Math.fround(Math.PI));
});

test("widen fills a target that is itself a view, and nothing around it", () => {
  for (const dtype of DTYPES) {
    const around = new Float32Array(4).fill(9);
    widen(narrow(Float32Array.of(1, 2), dtype), dtype, around.subarray(1, 3));
    expect([...around]).toEqual([9, 1, 2, 9]);
  }
});
