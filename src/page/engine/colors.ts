/** The colours of a sequence: neighbours in number are far from each other in hue. */
export function sequenceColor(sequence: number): string {
  return `oklch(var(--owner-l) var(--owner-c) ${hueOf(sequence)})`;
}

/** Degrees: the golden angle, by which no two of a few hundred meet. */
function hueOf(sequence: number): number {
  return Math.round((sequence * 137.508 + 250) % 360);
}

/** The custom properties that canvases draw with, as the style sheet has them now. */
export function palette(element: Element) {
  const style = getComputedStyle(element);
  const read = (name: string) => style.getPropertyValue(name).trim();
  const [l, c] = [read("--owner-l"), read("--owner-c")];
  return {
    free: read("--block-free"),
    cached: read("--block-cached"),
    mark: read("--block-mark"),
    ending: read("--block-ending"),
    ink: read("--ink"),
    muted: read("--muted"),
    line: read("--line"),
    owner: (sequence: number, alpha: number) => `oklch(${l} ${c} ${hueOf(sequence)} / ${alpha})`,
  };
}
