/** A number in about three digits, for people; a dash for none. */
export function figure(value: number | null | undefined): string {
  if (value === null || value === undefined) return "–";
  if (value >= 1e6) return `${(value / 1e6).toFixed(2)}M`;
  if (value >= 1e4) return `${(value / 1e3).toFixed(1)}k`;
  if (value >= 100) return value.toFixed(0);
  return value.toFixed(Number.isInteger(value) ? 0 : value >= 10 ? 1 : 2);
}
