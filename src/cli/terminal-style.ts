import type { WriteStream } from "node:tty";

type Output = Pick<WriteStream, "isTTY">;

/** True where lines can be drawn over: a terminal, and not one that takes plain text alone (`TERM=dumb`). */
export function isLive(output: Output): boolean {
  return Boolean(output.isTTY) && process.env["TERM"] !== "dumb";
}

/** True where colours and the like are shown, and wanted: see https://no-color.org. */
export function hasStyle(output: Output): boolean {
  return isLive(output) && !process.env["NO_COLOR"];
}

/** Text that is dim where the output has styles. */
export function dim(text: string, output: Output): string {
  return hasStyle(output) ? `\x1b[2m${text}\x1b[0m` : text;
}

/** A model's words for an output: as they are or, where it is a terminal, as one that shows them and does nothing else. */
export function modelText(text: string, output: Output): string {
  return output.isTTY ? harmless(text) : text;
}

/**
 * Text in which control characters, which could move the cursor, fill the clipboard or hide a link, are their pictures (U+2400 and
 * on). Line breaks and tabs stay; carriage returns, which line breaks do without, are left out.
 */
export function harmless(text: string): string {
  return text.replace(CONTROLS, (character) => {
    const code = character.charCodeAt(0);
    if (character === "\r") return "";
    if (code >= 0x80) return "\ufffd";
    return String.fromCharCode(0x2400 + (code === 0x7f ? 0x21 : code));
  });
}

/** C0 without tab and line feed, DEL, C1. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for.
const CONTROLS = /[\0-\x08\x0b-\x1f\x7f-\x9f]/g;
