/**
 * Text that comes in pieces, without the white space at its ends if there is something beside it. White space is held back
 * until it is known to be inside.
 */
export class TrimmedText {
  #held = "";
  #hasBegun = false;
  #breaks = false;

  /** @param trims white space at the ends is dropped; may become true later. */
  constructor(public trims: boolean) {}

  /** Takes text in; returns what is certain. */
  push(text: string): string {
    this.#held += text;
    if (text.trim() === "") return "";
    const end = this.#held.trimEnd().length;
    const certain = this.#held.slice(0, end);
    this.#held = this.#held.slice(end);
    const isBare = this.#breaks || (!this.#hasBegun && this.trims);
    const before = this.#breaks ? "\n\n" : "";
    this.#hasBegun = true;
    this.#breaks = false;
    return before + (isBare ? certain.trimStart() : certain);
  }

  /** What follows is a paragraph of its own. */
  breakParagraph(): void {
    if (!this.#hasBegun) return;
    this.#held = "";
    this.#breaks = true;
  }

  /** Ends the text: returns what is still held and belongs to it. */
  finish(): string {
    const held = this.trims ? "" : this.#held;
    this.#held = "";
    return held;
  }
}
