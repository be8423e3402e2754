/** Values that sums over ranks treat specially: zeros of both signs, infinity, not a number, the least and the largest. */
const SPECIAL = [0x0000, 0x8000, 0x7f80, 0xff80, 0x7fc0, 0x0001, 0x7f7f, 0x0000, 0x0000, 0x3f80];
const SPECIAL_SHARE = 1 / 64;
const BITS = new Uint32Array(1);
const FLOAT = new Float32Array(BITS.buffer);

/** bfloat16 values around 0, and some that are special; the same for the same seed. */
export function randomValues(count: number, seed: number): Uint16Array<ArrayBuffer> {
  const values = new Uint16Array(count);
  let state = seed >>> 0 || 1;
  const next = () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 2 ** 32;
  };
  for (let i = 0; i < count; i++) {
    values[i] =
      next() < SPECIAL_SHARE
        ? SPECIAL[Math.floor(next() * SPECIAL.length)]!
        : toBfloat16((next() - 0.5) * 2 ** Math.floor(next() * 12 - 6));
  }
  return values;
}

export function fromBfloat16(bits: number): number {
  BITS[0] = bits << 16;
  return FLOAT[0]!;
}

/** Rounds to nearest, ties to even; what is not a number has all bits but the sign set, as the GPU has it. */
export function toBfloat16(value: number): number {
  if (Number.isNaN(value)) return 0x7fff;
  FLOAT[0] = value;
  const bits = BITS[0]!;
  return ((bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16) & 0xffff;
}

/** residual + the sum of the parts: float32 in the order of the ranks, one rounding. Zeros have no sign: see `withoutSigns`. */
export function expectedSums(residual: Uint16Array, parts: readonly Uint16Array[]): Uint16Array<ArrayBuffer> {
  const sums = new Uint16Array(residual.length);
  for (let i = 0; i < sums.length; i++) {
    let sum = fromBfloat16(parts[0]![i]!);
    for (let rank = 1; rank < parts.length; rank++) sum = Math.fround(sum + fromBfloat16(parts[rank]![i]!));
    sums[i] = toBfloat16(Math.fround(sum + fromBfloat16(residual[i]!)));
  }
  return withoutSigns(sums);
}

/**
 * The largest distance of sums from those in float64, in units in the last place of the sum, or of its largest term where that is
 * more. Of terms that are neither infinite nor close to it, nor next to nothing.
 */
export function largestError(
  sums: Uint16Array,
  residual: Uint16Array,
  parts: readonly Uint16Array[],
): number {
  let largest = 0;
  for (let i = 0; i < sums.length; i++) {
    let exact = fromBfloat16(residual[i]!);
    let size = Math.abs(exact);
    for (const part of parts) {
      const term = fromBfloat16(part[i]!);
      exact += term;
      size = Math.max(size, Math.abs(term));
    }
    size = Math.max(size, Math.abs(exact));
    if (!(size < 2 ** 120 && size > 2 ** -100)) continue;
    // bfloat16 has 8 digits.
    const unit = 2 ** (Math.floor(Math.log2(size)) - 7);
    largest = Math.max(largest, Math.abs(fromBfloat16(sums[i]!) - exact) / unit);
  }
  return largest;
}

/** −0 as 0, in place: words of nothing but zeros are sent as −0. */
export function withoutSigns(values: Uint16Array<ArrayBuffer>): Uint16Array<ArrayBuffer> {
  for (let i = 0; i < values.length; i++) if (values[i] === 0x8000) values[i] = 0;
  return values;
}
