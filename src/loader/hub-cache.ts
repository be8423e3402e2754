import {
  existsSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { dirname, join, relative } from "node:path";
import { readShardIndex, SINGLE_FILE } from "./checkpoint.ts";

export const COMMIT = /^[0-9a-f]{40}$/;

/** One model in a cache folder laid out as Python's huggingface_hub does: blobs, snapshots of links to them, refs. */
export class HubCache {
  readonly folder: string;

  /** @param model `org/name`. */
  constructor(root: string, model: string) {
    this.folder = join(root, `models--${model.replace("/", "--")}`);
  }

  /** The file that holds content `etag`; its folder is made if need be. */
  blobPath(etag: string): string {
    mkdirSync(join(this.folder, "blobs"), { recursive: true });
    return join(this.folder, "blobs", etag);
  }

  snapshotPath(commit: string): string {
    return join(this.folder, "snapshots", commit);
  }

  /** True if `name` is there at `commit` with all its `size` bytes. */
  has(commit: string, name: string, size: number): boolean {
    return statSync(join(this.snapshotPath(commit), name), { throwIfNoEntry: false })?.size === size;
  }

  /** Makes `name` at `commit` a link to blob `etag`. */
  link(commit: string, name: string, etag: string): void {
    const path = join(this.snapshotPath(commit), name);
    const target = relative(dirname(path), this.blobPath(etag));
    replace(path, (temporary) => symlinkSync(target, temporary));
  }

  /** Records that branch or tag `revision` is `commit`. */
  setRef(revision: string, commit: string): void {
    if (revision === commit) return;
    replace(join(this.folder, "refs", revision), (temporary) => writeFileSync(temporary, commit));
  }

  /** The snapshot of a branch, tag or commit if its configuration and all weights are there. */
  completeSnapshot(revision: string): string | undefined {
    try {
      const commit = COMMIT.test(revision)
        ? revision
        : readFileSync(join(this.folder, "refs", revision), "utf8").trim();
      const snapshot = this.snapshotPath(commit);
      const present = (name: string) => existsSync(join(snapshot, name));
      if (!COMMIT.test(commit) || !present("config.json")) return undefined;
      if (present(SINGLE_FILE)) return snapshot;
      const shards = new Set(readShardIndex(snapshot).values());
      return [...shards].every(present) ? snapshot : undefined;
    } catch {
      return undefined;
    }
  }
}

/** Puts what `create` makes at `path`, atomically. */
function replace(path: string, create: (temporary: string) => void): void {
  mkdirSync(dirname(path), { recursive: true });
  const temporary = `${path}.${crypto.randomUUID()}`;
  try {
    create(temporary);
    renameSync(temporary, path);
  } catch (error) {
    rmSync(temporary, { force: true });
    throw error;
  }
}
