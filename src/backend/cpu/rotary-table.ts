/** See `Backend.rotaryTable`. */
export function rotaryTable(out: Float32Array, frequencies: Float32Array, amplitude: number): void {
  const half = frequencies.length;
  for (let position = 0, at = 0; at < out.length; position++, at += 2 * half) {
    for (let i = 0; i < half; i++) {
      const angle = Math.fround(position * frequencies[i]!);
      out[at + i] = amplitude * Math.cos(angle);
      out[at + half + i] = amplitude * Math.sin(angle);
    }
  }
}
