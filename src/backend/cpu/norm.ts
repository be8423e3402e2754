/** out[start, start + width) = x / rms(x) · weight, of one row; `out` may be `x`. */
export function rmsNormRow(
  out: Float32Array,
  x: Float32Array,
  start: number,
  weight: Float32Array,
  eps: number,
): void {
  const width = weight.length;
  let squares = 0;
  for (let i = 0; i < width; i++) squares += x[start + i]! * x[start + i]!;
  const scale = 1 / Math.sqrt(squares / width + eps);
  for (let i = 0; i < width; i++) out[start + i] = x[start + i]! * scale * weight[i]!;
}

/** out[T, H] = x[T, H] / rms(x) · weight[H]. */
export function rmsNorm(out: Float32Array, x: Float32Array, weight: Float32Array, eps: number): void {
  for (let start = 0; start < x.length; start += weight.length) rmsNormRow(out, x, start, weight, eps);
}

/** out[T, H] = (x − mean) / sqrt(var + eps) · weight[H] + bias[H]. */
export function layerNorm(
  out: Float32Array,
  x: Float32Array,
  weight: Float32Array,
  bias: Float32Array | undefined,
  eps: number,
): void {
  const width = weight.length;
  for (let start = 0; start < x.length; start += width) {
    let sum = 0;
    for (let i = 0; i < width; i++) sum += x[start + i]!;
    const mean = sum / width;
    let squares = 0;
    for (let i = 0; i < width; i++) squares += (x[start + i]! - mean) ** 2;
    const scale = 1 / Math.sqrt(squares / width + eps);
    for (let i = 0; i < width; i++) {
      out[start + i] = (x[start + i]! - mean) * scale * weight[i]! + (bias === undefined ? 0 : bias[i]!);
    }
  }
}
