import {
  type Dirent,
  lstatSync,
  readdirSync,
  readlinkSync,
  realpathSync,
  rmSync,
  type Stats,
  statSync,
} from "node:fs";
import { join } from "node:path";
import { ConfigError, ModelNotFoundError } from "../base/errors.ts";
import { HubCache } from "./hub-cache.ts";
import { isHubId } from "./hub-id.ts";

const FOLDER = /^models--(.+?)--(.+)$/;

/** A model in the Hugging Face cache. */
export interface CachedModel {
  /** `org/name`. */
  readonly id: string;
  /** Bytes that it takes on disk, parts of files included. */
  readonly bytes: number;
  /** Bytes of files that were not downloaded to their end. */
  readonly partialBytes: number;
  /** Time of the newest revision, or of the folder while there is none. */
  readonly modified: Date;
  /** Folders of the revisions that can be loaded; none: the download has not been finished. */
  readonly snapshots: readonly string[];
}

/** The folder of the cache: `given`, or Hugging Face's own (`HF_HUB_CACHE`, `HF_HOME`), shared with Python. */
export function hubCacheFolder(given?: string): string {
  if (given !== undefined) return given;
  // The library takes 20 ms to load, which commands that look at no cache do without.
  const { getHFHubCachePath } = require("@huggingface/hub") as typeof import("@huggingface/hub");
  return getHFHubCachePath();
}

/** The models of a cache folder by name; those of other kinds, and what has no id of a model, are left out. */
export function cachedModels(root: string): readonly CachedModel[] {
  return entriesOf(root)
    .flatMap(({ name }) => {
      const [, organisation, model] = name.match(FOLDER) ?? [];
      const id = `${organisation}/${model}`;
      return isHubId(id) ? (cachedModel(root, id) ?? []) : [];
    })
    .sort((a, b) => (a.id < b.id ? -1 : 1));
}

/** A model of a cache folder; undefined when there is nothing of it. */
export function cachedModel(root: string, id: string): CachedModel | undefined {
  const cache = new HubCache(root, id);
  const folder = statOf(cache.folder);
  if (!folder?.isDirectory()) return undefined;
  const files = filesBelow(cache.folder);
  const partial = files.filter(({ name }) => name.endsWith(".incomplete"));
  const snapshots = statOf(join(cache.folder, "snapshots"));
  const commits = entriesOf(join(cache.folder, "snapshots")).map(({ name }) => name);
  return {
    id,
    bytes: sum(files),
    partialBytes: sum(partial),
    modified: (snapshots ?? folder).mtime,
    snapshots: commits.flatMap((commit) => cache.completeSnapshot(commit) ?? []),
  };
}

export interface RemoveOptions {
  /** Also while a process has a file of it open. Default false. */
  readonly force?: boolean;
}

/**
 * Removes models from a cache folder, all or, where one is refused, none. Nothing outside of their own folders is touched: links
 * are removed, not followed.
 * @returns what was removed
 * @throws ModelNotFoundError for what is no id, not in the cache, or a link; ConfigError for a model that is in use.
 */
export function removeCachedModels(
  root: string,
  ids: readonly string[],
  { force = false }: RemoveOptions = {},
): readonly CachedModel[] {
  const models = [...new Set(ids)].map((id) => removable(root, id, force));
  for (const { id } of models) {
    const { folder } = new HubCache(root, id);
    // What is left of an interrupted removal must not look like a whole model.
    for (const part of ["refs", "snapshots", ""])
      rmSync(join(folder, part), { recursive: true, force: true });
  }
  return models;
}

function removable(root: string, id: string, force: boolean): CachedModel {
  if (!isHubId(id))
    throw new ModelNotFoundError(
      id,
      `${JSON.stringify(id)} is no Hugging Face id (org/name): only models of the cache can be removed`,
    );
  const model = cachedModel(root, id);
  const { folder } = new HubCache(root, id);
  if (model === undefined) throw new ModelNotFoundError(id, `${id} is not in ${root}`);
  if (lstatSync(folder).isSymbolicLink())
    throw new ModelNotFoundError(
      id,
      `${folder} is a link to ${readlinkSync(folder)}: remove that folder yourself`,
    );
  const users = force ? [] : processesUsing(folder);
  if (users.length > 0)
    throw new ConfigError(
      "force",
      `${id} is in use by process ${users.join(", ")}: wait for it, or give --force`,
    );
  return model;
}

/** Ids of this user's processes that have a file below a folder open, as one that downloads or loads a model has; none where there is no /proc. */
function processesUsing(folder: string): readonly number[] {
  const below = `${realpathSync(folder)}/`;
  return entriesOf("/proc")
    .map(({ name }) => Number(name))
    .filter((pid) => Number.isInteger(pid) && openFiles(pid).some((file) => file.startsWith(below)));
}

function openFiles(pid: number): readonly string[] {
  const folder = `/proc/${pid}/fd`;
  return entriesOf(folder).flatMap(({ name }) => {
    try {
      return readlinkSync(join(folder, name));
    } catch {
      // It was closed meanwhile.
      return [];
    }
  });
}

interface SizedFile {
  readonly name: string;
  readonly bytes: number;
}

/** Regular files below a folder, not through links. */
function filesBelow(folder: string): readonly SizedFile[] {
  return entriesOf(folder).flatMap((entry) => {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) return filesBelow(path);
    const size = entry.isFile() ? lstatSync(path, { throwIfNoEntry: false })?.size : undefined;
    return size === undefined ? [] : [{ name: entry.name, bytes: size }];
  });
}

/** Of what a path leads to; undefined where it leads nowhere, or where one may not look. */
function statOf(path: string): Stats | undefined {
  try {
    return statSync(path);
  } catch {
    return undefined;
  }
}

/** Of a folder that may not be there, or not be readable. */
function entriesOf(folder: string): readonly Dirent[] {
  try {
    return readdirSync(folder, { withFileTypes: true });
  } catch {
    return [];
  }
}

function sum(files: readonly SizedFile[]): number {
  return files.reduce((total, { bytes }) => total + bytes, 0);
}
