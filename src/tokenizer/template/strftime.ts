/** Python's `strftime` in the C locale, local time; a directive that is not known stays as it is. */
export function strftime(date: Date, format: string): string {
  const digits = (value: number, width = 2) => String(value).padStart(width, "0");
  const name = (options: Intl.DateTimeFormatOptions) => date.toLocaleString("en-US", options);
  const dayOfYear = () =>
    1 +
    Math.round(
      (new Date(date).setHours(0, 0, 0, 0) - new Date(date.getFullYear(), 0, 1).getTime()) / 86_400_000,
    );
  const directives: Record<string, () => string> = {
    Y: () => digits(date.getFullYear(), 4),
    y: () => digits(date.getFullYear() % 100),
    m: () => digits(date.getMonth() + 1),
    d: () => digits(date.getDate()),
    e: () => String(date.getDate()).padStart(2),
    H: () => digits(date.getHours()),
    I: () => digits(date.getHours() % 12 || 12),
    M: () => digits(date.getMinutes()),
    S: () => digits(date.getSeconds()),
    p: () => (date.getHours() < 12 ? "AM" : "PM"),
    a: () => name({ weekday: "short" }),
    A: () => name({ weekday: "long" }),
    b: () => name({ month: "short" }),
    B: () => name({ month: "long" }),
    j: () => digits(dayOfYear(), 3),
    "%": () => "%",
  };
  return format.replace(/%(.)/g, (directive, letter: string) => directives[letter]?.() ?? directive);
}
