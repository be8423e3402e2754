/** The largest value of float8_e4m3. */
export const FLOAT8_MAX = 448;
const NAN_CODE = 0x7f;
const SMALLEST_NORMAL = 2 ** -6;
/** Spacing of the values below `SMALLEST_NORMAL`. */
const SMALLEST = 2 ** -9;

/** The value of each of the 256 codes of float8_e4m3: sign, 4 bits of exponent, 3 of mantissa. */
export const FLOAT8_VALUES: Float32Array = Float32Array.from({ length: 256 }, (_, code) => {
  const [sign, exponent, mantissa] = [code & 0x80 ? -1 : 1, (code >> 3) & 15, code & 7];
  if ((code & NAN_CODE) === NAN_CODE) return Number.NaN;
  return sign * (exponent === 0 ? mantissa * SMALLEST : (8 + mantissa) * 2 ** (exponent - 10));
});

const scratchF32 = new Float32Array(1);
const scratchU32 = new Uint32Array(scratchF32.buffer);

/**
 * The code of float8_e4m3 that is nearest to `value`, as a float32, ties to even; beyond ±448 that of ±448. NaN stays NaN.
 */
export function toFloat8(value: number): number {
  scratchF32[0] = value;
  const bits = scratchU32[0]!;
  const sign = (bits >>> 24) & 0x80;
  scratchU32[0] = bits & 0x7fff_ffff;
  const size = scratchF32[0]!;
  if (size < SMALLEST_NORMAL) {
    // Adding 2^52 leaves no room for a fraction: the sum is rounded to a whole number of spacings.
    return sign | (size / SMALLEST + 2 ** 52 - 2 ** 52);
  }
  if (size >= FLOAT8_MAX) return sign | (NAN_CODE - 1);
  if (Number.isNaN(size)) return sign | NAN_CODE;
  // A float32 has 20 bits of mantissa more; a carry goes into the exponent, whose bias is 127, not 7.
  const word = scratchU32[0]!;
  return sign | (((word + 0x7_ffff + ((word >>> 20) & 1)) >>> 20) - (120 << 3));
}

const SMALLEST_NORMAL_BITS = 0x3c80_0000;
const FLOAT8_MAX_BITS = 0x43e0_0000;

/**
 * `toFloat8` of each value times `factor`. The products are left in `values`; `target` has their number.
 */
export function encodeFloat8(values: Float32Array, factor: number, target: Uint8Array): void {
  const words = new Uint32Array(values.buffer, values.byteOffset, values.length);
  for (let i = 0; i < words.length; i++) {
    values[i]! *= factor;
    const word = words[i]!;
    const size = word & 0x7fff_ffff;
    if (size < SMALLEST_NORMAL_BITS || size >= FLOAT8_MAX_BITS) target[i] = toFloat8(values[i]!);
    else target[i] = ((word >>> 24) & 0x80) | (((size + 0x7_ffff + ((size >>> 20) & 1)) >>> 20) - (120 << 3));
  }
}
