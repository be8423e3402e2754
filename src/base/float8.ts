/**
 * 8-bit floats of 4 exponent and 3 mantissa bits, bias 7, without infinities ("e4m3fn", Micikevicius et al. 2022): sign in bit 7; exponent 0 is
 * subnormal, steps of 2⁻⁹; 0x7f and 0xff are NaN, the only ones.
 */

/** The greatest finite value. */
export const E4M3_MAX = 448;

/** The value of each of the 256 codes. */
export const E4M3_VALUES: Float32Array = Float32Array.from({ length: 256 }, (_, code) => {
  const [exponent, mantissa] = [(code >> 3) & 15, code & 7];
  const sign = code < 128 ? 1 : -1;
  if (exponent === 15 && mantissa === 7) return Number.NaN;
  return sign * (exponent === 0 ? mantissa * 2 ** -9 : (8 + mantissa) * 2 ** (exponent - 10));
});

const bits = new DataView(new ArrayBuffer(4));

/** The nearest code, of equally near ones the even one; what is beyond ±448 saturates; NaN stays NaN. */
export function toE4m3(value: number): number {
  if (Number.isNaN(value)) return 0x7f;
  const sign = value < 0 || Object.is(value, -0) ? 0x80 : 0;
  const magnitude = Math.abs(value);
  if (magnitude >= E4M3_MAX) return sign | 0x7e;
  // Below 2⁻⁶ steps are all of 2⁻⁹; adding and subtracting 2^52 rounds to whole numbers, to even.
  if (magnitude < 2 ** -6) return sign | (magnitude * 2 ** 9 + 2 ** 52 - 2 ** 52);
  bits.setFloat32(0, magnitude);
  // A float32 has 20 bits more of mantissa. A carry goes into the exponent, as it should.
  const word = bits.getUint32(0);
  const rounded = word + 0x7ffff + ((word >>> 20) & 1);
  return sign | ((rounded >>> 20) - ((127 - 7) << 3));
}
