import { join } from "node:path";

/** The folder that a compiled program's own files appear in, for `node:fs`; they have no descriptors. */
const INSIDE_PROGRAM = "/$bunfs/root";

/** True in a program of one file, made by `bun build --compile`. */
export const isCompiled = import.meta.dir.startsWith(INSIDE_PROGRAM);

const ROOT = isCompiled ? INSIDE_PROGRAM : join(import.meta.dir, "../..");

/**
 * A file or folder of Octavo itself, by its path in the repository. The only way to one: nothing else may rely on where a source
 * file lies. What is asked for must be among those that `.ci/binary.ts` puts into a compiled program, where it can be listed and
 * read as a whole, and not be opened.
 */
export function programFile(path: string): string {
  return join(ROOT, path);
}

/** The script of a Worker, by its path in the repository, which ends in `-worker.ts`. */
export function workerScript(path: `src/${string}-worker.ts`): URL {
  return Bun.pathToFileURL(programFile(path));
}
