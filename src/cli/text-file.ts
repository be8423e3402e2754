import { readFileSync } from "node:fs";
import { ModelNotFoundError } from "../base/errors.ts";

/** The text of a file that the user named; `-`: standard input. @throws ModelNotFoundError when it cannot be read. */
export function readTextFile(file: string): string {
  try {
    return readFileSync(file === "-" ? 0 : file, "utf8");
  } catch (cause) {
    throw new ModelNotFoundError(file, `cannot read ${file}`, { cause });
  }
}
