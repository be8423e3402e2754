import { readSync } from "node:fs";
import { ModelDataError, messageOf } from "./errors.ts";

/**
 * Fills `target` from `position` of an open file.
 * @throws ModelDataError, naming `path`, when reading fails or the file ends before.
 */
export function readFully(path: string, fd: number, target: Uint8Array, position: number): void {
  for (let done = 0; done < target.length; ) {
    let count: number;
    try {
      count = readSync(fd, target, done, target.length - done, position + done);
    } catch (error) {
      throw new ModelDataError(path, `cannot be read: ${messageOf(error)}`, { cause: error });
    }
    if (count === 0) throw new ModelDataError(path, "became shorter while being read");
    done += count;
  }
}
