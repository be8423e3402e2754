/** out[start, start + width) = x / rms(x) · weight, of one row; `out` may be `x`. */
export function rmsNormRow(
  out: Float32Array,
  x: Float32Array,
  start: number,
  weight: Float32Array,
  eps: number,
): void {
  const width = weight.length;
  const scale = inverseRms(x, start, width, eps);
  for (let i = 0; i < width; i++) out[start + i] = x[start + i]! * scale * weight[i]!;
}

/** x[start, start + width) = x / rms(x). */
export function normaliseRow(x: Float32Array, start: number, width: number, eps: number): void {
  const scale = inverseRms(x, start, width, eps);
  for (let i = start; i < start + width; i++) x[i]! *= scale;
}

function inverseRms(x: Float32Array, start: number, width: number, eps: number): number {
  let squares = 0;
  for (let i = start; i < start + width; i++) squares += x[i]! * x[i]!;
  return 1 / Math.sqrt(squares / width + eps);
}

/** out[T, H] = x[T, H] / rms(x) · weight[H], plus addTo[T, H], which may be `out`, the sum times `scale`. */
export function rmsNorm(
  out: Float32Array,
  x: Float32Array,
  weight: Float32Array,
  eps: number,
  addTo?: Float32Array,
  scale = 1,
): void {
  const normed = addTo === undefined ? out : new Float32Array(out.length);
  for (let start = 0; start < x.length; start += weight.length) rmsNormRow(normed, x, start, weight, eps);
  if (addTo !== undefined) for (const i of out.keys()) out[i] = (addTo[i]! + normed[i]!) * scale;
}

/** out[T, 2]: sums of squares of each token's queries and of its keys, of packed projections. */
export function sumSquares(out: Float32Array, qkv: Float32Array, queryWidth: number, keyWidth: number): void {
  const width = queryWidth + 2 * keyWidth;
  for (let t = 0; t < out.length / 2; t++) {
    let [query, key] = [0, 0];
    for (let i = t * width; i < t * width + queryWidth; i++) query += qkv[i]! ** 2;
    for (let i = t * width + queryWidth; i < (t + 1) * width - keyWidth; i++) key += qkv[i]! ** 2;
    out[2 * t] = query;
    out[2 * t + 1] = key;
  }
}

/** Divides queries and keys by the roots of their mean squares over all ranks, whose `sumSquares` are given. */
export function normProjections(
  qkv: Float32Array,
  squares: readonly Float32Array[],
  query: Float32Array,
  key: Float32Array,
  eps: number,
): void {
  const width = query.length + 2 * key.length;
  const ofAll = (index: number) => squares.reduce((sum, ofRank) => sum + ofRank[index]!, 0);
  for (let t = 0; t * width < qkv.length; t++) {
    for (const [part, weight] of [query, key].entries()) {
      const start = t * width + part * query.length;
      const scale = 1 / Math.sqrt(ofAll(2 * t + part) / (weight.length * squares.length) + eps);
      for (const [i, factor] of weight.entries()) qkv[start + i]! *= scale * factor;
    }
  }
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
