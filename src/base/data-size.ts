/** True if a value of plain data holds more characters and entries than `limit`. It looks at no more than about as many. */
export function isLargerThan(limit: number, value: unknown): boolean {
  let size = 0;
  const unseen: unknown[] = [value];
  while (unseen.length > 0) {
    const next = unseen.pop();
    if (typeof next === "string") size += next.length;
    else if (ArrayBuffer.isView(next)) size += next.byteLength;
    else if (typeof next === "object" && next !== null) {
      if (Array.isArray(next) && next.length > limit - size) return true;
      for (const key in next) {
        size += Array.isArray(next) ? 1 : key.length + 1;
        if (size > limit) return true;
        unseen.push((next as Record<string, unknown>)[key]);
      }
    }
    if (size > limit) return true;
  }
  return false;
}
