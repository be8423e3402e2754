/** Numbers that lose their spelling: integral ones with a point or an exponent, and those of 16 digits and more. */
const LOSSY = /\d\.0+(?![0-9])|\d[eE][-+]?\d|\d{16}/;

/** True if `parseExactJson` could give something else than `JSON.parse` does. */
export function spellsNumbers(text: string): boolean {
  return LOSSY.test(text);
}

/**
 * Parses JSON and keeps how numbers are spelled, where JavaScript would not: `1.0` and `1e3` become boxed numbers
 * (`new Number(1)`), integers beyond 2^53 become bigints. Both survive being posted to a Worker.
 * @throws SyntaxError as JSON.parse does
 */
export function parseExactJson(text: string): unknown {
  if (!spellsNumbers(text)) return JSON.parse(text);
  return JSON.parse(text, (_, value: unknown, context?: { readonly source: string }) => {
    if (typeof value !== "number" || context === undefined) return value;
    if (/^-?\d+$/.test(context.source)) return Number.isSafeInteger(value) ? value : BigInt(context.source);
    return Number.isInteger(value) ? Object(value) : value;
  });
}
