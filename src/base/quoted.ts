/** A text of a file in a message: quoted, without control characters, not longer than a line. */
export function quoted(text: string): string {
  const whole = JSON.stringify(text);
  return whole.length <= 100 ? whole : `${whole.slice(0, 100)}…`;
}
