import { InvalidRequestError } from "../base/errors.ts";

export interface StopStringResult {
  /** Text that can no longer become part of a stop string. */
  text: string;
  /** The stop string that ended the text. Nothing follows it. */
  matched?: string;
}

/**
 * Finds stop strings in text that arrives in pieces. The first one to be complete wins, and of two complete at the
 * same character the longer: the outcome does not depend on how the text is cut into pieces.
 * Holds back at most max(length of a stop string) − 1 UTF-16 code units.
 */
export class StopStringMatcher {
  readonly #stops: readonly string[];
  readonly #includeStop: boolean;
  readonly #longest: number;
  #held = "";
  #matched: string | undefined;

  /**
   * @param includeStop whether the returned text ends with the stop string itself
   * @throws InvalidRequestError if a stop string is empty
   */
  constructor(stops: readonly string[], includeStop: boolean) {
    if (stops.includes("")) throw new InvalidRequestError("stop", "a stop string must not be empty");
    this.#stops = stops;
    this.#includeStop = includeStop;
    this.#longest = Math.max(0, ...stops.map((stop) => stop.length));
  }

  /** Takes the next piece. After a match all further text is dropped. */
  push(delta: string): StopStringResult {
    if (this.#matched !== undefined) return { text: "", matched: this.#matched };
    const text = this.#held + delta;
    let end = Number.POSITIVE_INFINITY;
    let matched: string | undefined;
    for (const stop of this.#stops) {
      const at = text.indexOf(stop);
      if (at < 0 || at + stop.length > end) continue;
      if (at + stop.length < end || stop.length > matched!.length) matched = stop;
      end = at + stop.length;
    }
    if (matched !== undefined) {
      this.#held = "";
      this.#matched = matched;
      return { text: text.slice(0, this.#includeStop ? end : end - matched.length), matched };
    }
    const held = this.#prefixLength(text);
    this.#held = text.slice(text.length - held);
    return { text: text.slice(0, text.length - held) };
  }

  /** Ends the text: returns what was held back. */
  flush(): string {
    const held = this.#held;
    this.#held = "";
    return held;
  }

  /** The length of the longest end of `text` that begins a stop string. */
  #prefixLength(text: string): number {
    for (let length = Math.min(this.#longest - 1, text.length); length > 0; length--) {
      const end = text.slice(text.length - length);
      if (this.#stops.some((stop) => stop.startsWith(end))) return length;
    }
    return 0;
  }
}
