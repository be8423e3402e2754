import { PassThrough } from "node:stream";

/** A terminal that is told so sends `PASTE_BEGIN`, the text and `PASTE_END` for what is pasted ("bracketed paste"). */
export const PASTE_ON = "\x1b[?2004h";
export const PASTE_OFF = "\x1b[?2004l";
const PASTE_BEGIN = "\x1b[200~";
const PASTE_END = "\x1b[201~";
const INTERRUPT = "\x03";

/** Longest pasted text that is shown in the line. */
const MAX_SHOWN = 1000;

/**
 * The keys between a terminal in raw mode and a line editor. They reach the editor a line at a time, when it is asked
 * for: what is typed meanwhile waits, unseen. Pasted text becomes part of the line that is edited, whatever it holds; if
 * it has line breaks or is long, a placeholder stands for it.
 */
export class TerminalKeys {
  /** The editor's input. */
  readonly editor = new PassThrough();
  readonly #pastes = new Map<string, string>();
  /** Keys that have not reached the editor. */
  #waiting = "";
  /** The text of a paste that has not ended. */
  #paste: string | undefined;
  #open = false;

  /** @param onInterrupt Called for Ctrl-C while keys wait; it drops them. While a line is edited the editor gets it. */
  constructor(private readonly onInterrupt: () => void) {}

  /** Takes what the terminal sent. */
  write(keys: string): void {
    this.#waiting += keys;
    if (this.#open) this.#pass();
    else if (typed(this.#waiting).includes(INTERRUPT)) {
      this.#waiting = "";
      this.onInterrupt();
    }
  }

  /** Lets keys through until the line is ended. */
  openLine(): void {
    this.#open = true;
    this.#pass();
  }

  /** A line of the editor with the pasted texts in place of their placeholders. */
  expand(line: string): string {
    return line.replace(/\[pasted text \d+: [^\]]+\]/g, (name) => this.#pastes.get(name) ?? name);
  }

  #pass(): void {
    while (this.#open && (this.#paste === undefined ? this.#passKeys() : this.#passPaste()));
  }

  /** Passes keys on as far as the next paste or the end of the line. Returns whether there may be more to pass. */
  #passKeys(): boolean {
    const { before, mark, after } = cut(this.#waiting, [PASTE_BEGIN, "\r", "\n"]);
    this.#waiting = after;
    if (mark === PASTE_BEGIN) this.#paste = "";
    else if (mark !== "") this.#open = false;
    const keys = before + (this.#open ? "" : "\r");
    if (keys !== "") this.editor.write(keys);
    return mark !== "";
  }

  /** Takes pasted text as far as it has come. Returns whether there may be more to pass. */
  #passPaste(): boolean {
    const { before, mark, after } = cut(this.#waiting, [PASTE_END]);
    this.#waiting = after;
    this.#paste += before;
    if (mark === "") return false;
    this.editor.write(this.#shown(clean(this.#paste!)));
    this.#paste = undefined;
    return true;
  }

  /** A pasted text as the line shows it. */
  #shown(text: string): string {
    const lines = text.split("\n").length;
    if (lines === 1 && text.length <= MAX_SHOWN) return text;
    const size = lines === 1 ? `${text.length} characters` : `${lines} lines`;
    const name = `[pasted text ${this.#pastes.size + 1}: ${size}]`;
    this.#pastes.set(name, text);
    return name;
  }
}

/** Pasted text with one kind of line break, and without control characters, which the editor would take for keys. */
function clean(text: string): string {
  return text.replace(/\r\n?/g, "\n").replace(/[^\P{Cc}\n\t]/gu, "");
}

/** The keys that were typed, without pasted text. */
function typed(keys: string): string {
  const [first, ...pastes] = keys.split(PASTE_BEGIN);
  return first + pastes.map((part) => part.split(PASTE_END)[1] ?? "").join("");
}

/**
 * The text before the first of the marks, the mark, and the text after it. If there is none, `mark` is empty and
 * `after` is the end of the text that may begin the first of `marks`: a lone escape waits for the key after it.
 */
function cut(text: string, marks: readonly string[]): { before: string; mark: string; after: string } {
  const found = marks.filter((mark) => text.includes(mark)).sort((a, b) => text.indexOf(a) - text.indexOf(b));
  const [mark] = found;
  if (mark !== undefined) {
    const at = text.indexOf(mark);
    return { before: text.slice(0, at), mark, after: text.slice(at + mark.length) };
  }
  const [long] = marks as readonly [string];
  let length = Math.min(long.length - 1, text.length);
  while (length > 0 && !text.endsWith(long.slice(0, length))) length--;
  const at = text.length - length;
  return { before: text.slice(0, at), mark: "", after: text.slice(at) };
}
