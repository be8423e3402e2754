import {
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { cacheFolder } from "../base/cache-folder.ts";
import { ModelNotFoundError, messageOf } from "../base/errors.ts";
import { isCompiled, programFile } from "../base/program-file.ts";

/** The name of the model that ships with Octavo, unless a folder of this name is at hand. */
export const EMBEDDED_NAME = "tiny-stories";

/** True for the name of the embedded model, and for none. */
export function isEmbedded(model: string | undefined): boolean {
  return model === undefined || (model === EMBEDDED_NAME && !existsSync(model));
}

/**
 * The folder of the model that ships with Octavo. Weights are read through descriptors, which the files inside a compiled program do
 * not have: there it is unpacked once, into the cache or, where that cannot be written, into the folder of temporary files.
 * @throws ModelNotFoundError when neither can be written.
 */
export function embeddedModel(): string {
  const model = programFile("models/tiny-stories");
  if (!isCompiled) return model;
  return unpacked(model, [cacheFolder("models"), join(tmpdir(), `octavo-${process.getuid!()}`)]);
}

/**
 * A copy of a folder of files in the first of some folders where that is possible. Copies are called by their contents, and are
 * shared by all processes of this user.
 * @internal
 */
export function unpacked(folder: string, places: readonly string[]): string {
  const files = readdirSync(folder).map((name) => ({ name, bytes: readFileSync(join(folder, name)) }));
  const hash = new Bun.CryptoHasher("sha256");
  for (const { name, bytes } of files) hash.update(`${name} ${bytes.length}\n`).update(bytes);
  const digest = hash.digest("hex").slice(0, 32);
  const problems: string[] = [];
  for (const place of places) {
    try {
      makeOwn(place);
      const copy = join(place, digest);
      if (!existsSync(copy)) write(files, copy);
      return copy;
    } catch (error) {
      problems.push(messageOf(error));
    }
  }
  const remedy = "set OCTAVO_CACHE_DIR to a folder that can be written";
  throw new ModelNotFoundError(
    folder,
    `the embedded model is not unpacked (${problems.join("; ")}): ${remedy}`,
  );
}

/** Makes a folder that nobody else writes to. One in /tmp may have been made by another user, to be read by this one. */
function makeOwn(folder: string): void {
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  const { uid, mode } = lstatSync(folder);
  if (uid !== process.getuid!() || (mode & 0o22) !== 0) throw new Error(`${folder} can be written by others`);
}

/** Other processes see the whole folder or none: it is written aside and renamed. */
function write(
  files: readonly { readonly name: string; readonly bytes: Uint8Array }[],
  folder: string,
): void {
  const aside = `${folder}.${crypto.randomUUID()}`;
  try {
    mkdirSync(aside);
    for (const { name, bytes } of files) writeFileSync(join(aside, name), bytes);
    renameSync(aside, folder);
  } catch (error) {
    rmSync(aside, { recursive: true, force: true });
    // Another process was first.
    if (!existsSync(folder)) throw error;
  }
}
