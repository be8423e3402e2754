/** A name of a file in a message: as it is if it is one word of a usual length, else quoted. */
export function shown(name: string): string {
  return /^[\w./:-]{1,200}$/.test(name) ? name : quoted(name);
}

/** A text of a file in a message: quoted, without control characters, not longer than a line. */
export function quoted(text: string): string {
  const whole = JSON.stringify(text);
  return whole.length <= 100 ? whole : `${whole.slice(0, 100)}…`;
}
