/**
 * Element types of tensors. Activations are floats of `FloatDType`, weights too unless they are quantised; indices are int32. float8_e4m3 has
 * a sign, 4 bits of exponent and 3 of mantissa, no infinity ("e4m3fn"; Micikevicius et al. 2022).
 */
export type DType = "float32" | "bfloat16" | "float16" | "float8_e4m3" | "int32" | "uint32" | "uint8";
/** The dtypes that models compute in. */
export type FloatDType = "float32" | "bfloat16" | "float16";
/** Of keys and values in the cache. */
export type KvDType = FloatDType | "float8_e4m3";

const SIZES: Record<DType, number> = {
  ...{ float32: 4, bfloat16: 2, float16: 2, float8_e4m3: 1 },
  ...{ int32: 4, uint32: 4, uint8: 1 },
};

/** Bytes of one element. */
export function dtypeSize(dtype: DType): number {
  return SIZES[dtype];
}

const scratchF32 = new Float32Array(1);
const scratchU32 = new Uint32Array(scratchF32.buffer);

/** float32 → bfloat16 bits, rounding to nearest even; NaN stays NaN. */
export function toBfloat16(value: number): number {
  scratchF32[0] = value;
  const bits = scratchU32[0]!;
  if ((bits & 0x7fffffff) > 0x7f800000) return (bits >>> 16) | 0x40;
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
}

/** Widens `source` (raw little-endian elements of `dtype`) into `target`, element by element. */
export function widen(source: Uint8Array, dtype: FloatDType, target: Float32Array): void {
  const count = target.length;
  if (dtype === "float32") {
    new Uint8Array(target.buffer, target.byteOffset, count * 4).set(source.subarray(0, count * 4));
  } else if (dtype === "bfloat16") {
    const from = u16View(source, count);
    const to = new Uint32Array(target.buffer, target.byteOffset, count);
    for (let i = 0; i < count; i++) to[i] = from[i]! << 16;
  } else {
    const from = u16View(source, count);
    target.set(new Float16Array(from.buffer, from.byteOffset, count));
  }
}

/** Rounds `source` to `dtype`; returns raw little-endian bytes. */
export function narrow(source: Float32Array, dtype: FloatDType): Uint8Array {
  if (dtype === "float32") return new Uint8Array(source.slice().buffer);
  if (dtype === "float16") return new Uint8Array(Float16Array.from(source).buffer);
  const bits = new Uint16Array(source.length);
  for (let i = 0; i < source.length; i++) bits[i] = toBfloat16(source[i]!);
  return new Uint8Array(bits.buffer);
}

/** `value`, rounded to `dtype`. */
export function rounded(value: number, dtype: FloatDType): number {
  const result = new Float32Array(1);
  widen(narrow(Float32Array.of(value), dtype), dtype, result);
  return result[0]!;
}

/** A 16-bit view of `bytes`, copied first when its offset is odd. */
function u16View(bytes: Uint8Array, count: number): Uint16Array {
  const aligned = bytes.byteOffset % 2 === 0 ? bytes : new Uint8Array(bytes);
  return new Uint16Array(aligned.buffer, aligned.byteOffset, count);
}
