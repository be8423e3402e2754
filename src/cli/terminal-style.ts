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
