const UNITS = ["bytes", "KiB", "MiB", "GiB", "TiB"] as const;

/** A number of bytes in the largest unit that it reaches, rounded to one decimal: `1.5 GiB`. */
export function formatBytes(count: number): string {
  return inLargestUnit(count, 1);
}

/** Numbers of bytes that a reader compares: each in its largest unit, with decimals enough that different ones differ. */
export function formatByteCounts(...counts: readonly number[]): readonly string[] {
  for (const decimals of [1, 2, 3]) {
    const texts = counts.map((count) => inLargestUnit(count, decimals));
    if (new Set(texts).size === new Set(counts).size) return texts;
  }
  return counts.map((count) => `${count} bytes`);
}

function inLargestUnit(count: number, decimals: number): string {
  let [value, unit] = [count, 0];
  while (Number(value.toFixed(decimals)) >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${Number(value.toFixed(decimals))} ${UNITS[unit]}`;
}
