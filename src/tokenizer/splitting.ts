import { ModelDataError } from "../base/errors.ts";
import type { Finder } from "./pattern/pattern.ts";

const BEHAVIORS = ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"] as const;
/** The fate of a match when a text is split at it. */
export type Behavior = (typeof BEHAVIORS)[number];

/** @throws ModelDataError naming `file` */
export function behaviorOf(value: unknown, file: string): Behavior {
  const behavior = BEHAVIORS.find((each) => each === value);
  if (behavior !== undefined) return behavior;
  throw new ModelDataError(file, `${JSON.stringify(value)} is not a way to split`);
}

/**
 * The pieces of a text around and of the matches in it; empty ones are left out. What is between the matches counts as
 * a match if `invert`.
 */
export function split(text: string, found: ReturnType<Finder>, behavior: Behavior, invert = false): string[] {
  /** Ends of the stretches of the text, and whether each is a match. */
  const ends: number[] = [];
  const matches: boolean[] = [];
  let at = 0;
  for (let i = 0; i < found.length; i += 2) {
    if (found[i]! > at) {
      ends.push(found[i]!);
      matches.push(invert);
    }
    ends.push(found[i + 1]!);
    matches.push(!invert);
    at = found[i + 1]!;
  }
  if (at < text.length) {
    ends.push(text.length);
    matches.push(invert);
  }

  const result: string[] = [];
  let start = 0;
  for (let i = 0; i < ends.length; i++) {
    const isMatch = matches[i]!;
    const next = matches[i + 1];
    const goesOn =
      next !== undefined &&
      ((behavior === "Contiguous" && next === isMatch) ||
        (behavior === "MergedWithPrevious" && next && !isMatch) ||
        (behavior === "MergedWithNext" && !next && isMatch));
    if (goesOn) continue;
    if (!(behavior === "Removed" && isMatch) && ends[i]! > start) result.push(text.slice(start, ends[i]));
    start = ends[i]!;
  }
  return result;
}
