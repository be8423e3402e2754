import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { getHFHubCachePath, HubApiError, type ListFileEntry, listFiles, modelInfo } from "@huggingface/hub";
import { ConfigError, DownloadError, ModelDataError, messageOf, OctavoError } from "../base/errors.ts";
import { homeFolder } from "../base/home-folder.ts";
import { noWeights, readShardIndex, SHARD_INDEX, SINGLE_FILE } from "./checkpoint.ts";
import { COMMIT, HubCache } from "./hub-cache.ts";
import { downloadFile } from "./resumable-download.ts";

const PARALLEL_DOWNLOADS = 4;
const NEEDED: ReadonlySet<string> = new Set([
  ...["config.json", "generation_config.json", "chat_template.jinja", "chat_template.json"],
  ...["hf_quant_config.json", "quantize_config.json", "quant_config.json"],
  ...["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"],
  ...["tokenizer.model", "vocab.json", "vocab.txt", "merges.txt"],
]);

export interface ResolveModelOptions {
  /** Branch, tag or commit. Default main. */
  readonly revision?: string;
  /** Folder of the cache. Default: Hugging Face's own (`HF_HUB_CACHE`, `HF_HOME`), shared with Python. */
  readonly downloadDir?: string;
  /** Bytes of the weights present so far, and in all. Not called when all are in the cache. */
  readonly onProgress?: (loadedBytes: number, totalBytes: number) => void;
}

/**
 * The snapshot of the Hugging Face model `org/name`, downloaded (from `HF_ENDPOINT`) as far as the cache lacks it:
 * configuration, tokenizer, templates and safetensors. A complete cached snapshot also serves when the hub gives no reply;
 * with `HF_HUB_OFFLINE` nothing else does. The hub is sent `HF_TOKEN`, or the token that `hf auth login` stored.
 * @throws ConfigError for a malformed revision; DownloadError when the hub refuses, fails, or is needed offline;
 * UnsupportedModelError when there are only pickled weights.
 */
export async function resolveHubModel(model: string, options: ResolveModelOptions): Promise<string> {
  const revision = checkedRevision(options.revision);
  const root = options.downloadDir ?? getHFHubCachePath();
  const cache = new HubCache(root, model);
  const cached = cache.completeSnapshot(revision);
  if (isOffline()) {
    if (cached !== undefined) return cached;
    const remedy = `unset HF_HUB_OFFLINE, or run "octavo pull ${model}" where there is a network`;
    throw new DownloadError(
      `${model} (${revision}) is not complete in ${root} and offline: ${remedy}`,
      undefined,
    );
  }

  const hub = Hub.open(model);
  try {
    const listing = await hub.list(revision).catch((error: unknown) => {
      if (cached !== undefined && !(error instanceof HubApiError) && !(error instanceof OctavoError))
        return undefined;
      throw error;
    });
    if (listing === undefined) return cached!;
    await download(hub, cache, listing, options.onProgress);
    cache.setRef(revision, listing.commit);
    return cache.snapshotPath(listing.commit);
  } catch (error) {
    throw hub.explain(error, revision);
  }
}

/** @throws ConfigError for what cannot be a revision. Default main. */
export function checkedRevision(revision = "main"): string {
  if (!/^\w[\w./-]{0,250}$/.test(revision) || /\.\.|\/\/|\/$/.test(revision))
    throw new ConfigError("revision", `revision ${JSON.stringify(revision)} is not a branch, tag or commit`);
  return revision;
}

/** The files of a model at one commit. */
export interface Listing {
  readonly commit: string;
  readonly files: ReadonlyMap<string, ListFileEntry>;
}

/** One model on the hub. */
export class Hub {
  readonly #endpoint = (process.env["HF_ENDPOINT"] || "https://huggingface.co").replace(/\/+$/, "");

  private constructor(
    readonly model: string,
    private readonly token: string | undefined,
  ) {}

  /** With `HF_TOKEN`, or the token that `hf auth login` stored. */
  static open(model: string): Hub {
    return new Hub(model, storedToken());
  }

  /** Fetches with the token, which goes to the hub alone. */
  readonly fetch = Object.assign(
    (input: string | URL | Request, init?: RequestInit): Promise<Response> => {
      const request = input instanceof Request ? new Request(input, init) : new Request(String(input), init);
      if (this.token !== undefined && new URL(request.url).origin === new URL(this.#endpoint).origin)
        request.headers.set("Authorization", `Bearer ${this.token}`);
      return fetch(request);
    },
    { preconnect: fetch.preconnect },
  );

  /** The files in the top folder. */
  async list(revision: string): Promise<Listing> {
    const { model } = this;
    const common = { hubUrl: this.#endpoint, fetch: this.fetch };
    const { sha } = await modelInfo({ ...common, name: model, revision, additionalFields: ["sha"] });
    if (!COMMIT.test(sha)) throw new DownloadError(`${model}: the hub names no commit for ${revision}`, 200);
    const files = new Map<string, ListFileEntry>();
    for await (const entry of listFiles({ ...common, repo: model, revision: sha })) {
      if (entry.type === "file") files.set(entry.path, entry);
    }
    return { commit: sha, files };
  }

  url(commit: string, name: string): string {
    return `${this.#endpoint}/${this.model}/resolve/${commit}/${encodeURIComponent(name)}`;
  }

  /** The error to throw for any failure of a download: one clear line. */
  explain(error: unknown, revision: string): OctavoError {
    const status =
      error instanceof HubApiError
        ? error.statusCode
        : error instanceof DownloadError
          ? error.status
          : undefined;
    const explained = (message: string) => new DownloadError(message, status, { cause: error });
    if (status === 401 || status === 403) {
      const remedy = `accept its terms at ${this.#endpoint}/${this.model} and set HF_TOKEN`;
      return explained(`${this.model} is gated, private or does not exist (HTTP ${status}): ${remedy}`);
    }
    if (status === 404)
      return explained(`${this.#endpoint} has no model ${this.model} at revision ${revision} (HTTP 404)`);
    if (error instanceof OctavoError) return error;
    const reason = status === undefined ? messageOf(error) : `HTTP ${status}`;
    return explained(`cannot download ${this.model} from ${this.#endpoint}: ${reason}`);
  }
}

/** Brings the files that Octavo needs into the cache: the small ones first, so that weights imply the rest. */
async function download(
  hub: Hub,
  cache: HubCache,
  { commit, files }: Listing,
  onProgress: ResolveModelOptions["onProgress"],
): Promise<void> {
  await downloadAll(hub, cache, commit, smallFiles(hub.model, files), () => {});
  const weights = weightFiles(hub.model, files, cache.snapshotPath(commit));
  const totalBytes = weights.reduce((sum, entry) => sum + entry.size, 0);
  await downloadAll(hub, cache, commit, weights, (loaded) => onProgress?.(loaded, totalBytes));
}

/**
 * The files that are needed besides weights, the index of shards among them.
 * @throws ModelNotFoundError or UnsupportedModelError for a model without safetensors
 */
export function smallFiles(model: string, files: Listing["files"]): readonly ListFileEntry[] {
  const single = files.has(SINGLE_FILE);
  if (!single && !files.has(SHARD_INDEX)) throw noWeights(model, [...files.keys()]);
  return [...files.values()].filter(({ path }) => NEEDED.has(path) || (path === SHARD_INDEX && !single));
}

/** The files of weights, of which a `folder` with the small files tells. */
export function weightFiles(
  model: string,
  files: Listing["files"],
  folder: string,
): readonly ListFileEntry[] {
  const names = files.has(SINGLE_FILE) ? [SINGLE_FILE] : new Set(readShardIndex(folder).values());
  return [...names].map((name) => {
    const entry = files.get(name);
    if (entry === undefined) throw new ModelDataError(SHARD_INDEX, `names ${name}, which ${model} lacks`);
    return entry;
  });
}

/** Downloads what the cache lacks, a few files at a time; the first failure stops all. */
async function downloadAll(
  hub: Hub,
  cache: HubCache,
  commit: string,
  entries: readonly ListFileEntry[],
  onProgress: (loadedBytes: number) => void,
): Promise<void> {
  const absent = entries.filter((entry) => !cache.has(commit, entry.path, entry.size));
  const absentBytes = absent.reduce((sum, entry) => sum + entry.size, 0);
  const present = entries.reduce((sum, entry) => sum + entry.size, -absentBytes);
  const loaded = new Map<string, number>();
  const report = (name: string, bytes: number) => {
    loaded.set(name, bytes);
    onProgress([...loaded.values()].reduce((sum, count) => sum + count, present));
  };
  const failed = new AbortController();
  const queue = absent.values();
  const worker = async () => {
    for (const entry of queue) {
      if (failed.signal.aborted) return;
      await bring(hub, cache, commit, entry, failed.signal, (bytes) => report(entry.path, bytes));
    }
  };
  const workers = Array.from({ length: PARALLEL_DOWNLOADS }, () =>
    worker().catch((error: unknown) => failed.abort(error)),
  );
  await Promise.all(workers);
  if (failed.signal.aborted) throw failed.signal.reason;
}

async function bring(
  hub: Hub,
  cache: HubCache,
  commit: string,
  entry: ListFileEntry,
  signal: AbortSignal,
  onProgress: (bytes: number) => void,
): Promise<void> {
  const etag = entry.lfs?.oid ?? entry.oid ?? "";
  if (!/^(?:[0-9a-f]{40}|[0-9a-f]{64})$/.test(etag))
    throw new DownloadError(`${entry.path}: the hub reports no checksum`, 200);
  const blob = cache.blobPath(etag);
  if (statSync(blob, { throwIfNoEntry: false })?.size !== entry.size) {
    const digest = { kind: entry.lfs === undefined ? "git" : "sha256", hex: etag } as const;
    const file = { name: entry.path, url: hub.url(commit, entry.path), size: entry.size, digest };
    await downloadFile(file, blob, { fetch: hub.fetch, signal, onProgress });
  }
  onProgress(entry.size);
  cache.link(commit, entry.path, etag);
}

/** True where `HF_HUB_OFFLINE` says that there is no network. */
export function isOffline(): boolean {
  return /^(?:1|true|yes|on)$/i.test(process.env["HF_HUB_OFFLINE"] ?? "");
}

/** `HF_TOKEN`, or what `hf auth login` stored. */
function storedToken(): string | undefined {
  const home =
    process.env["HF_HOME"] ??
    join(process.env["XDG_CACHE_HOME"] ?? join(homeFolder(), ".cache"), "huggingface");
  try {
    const token =
      process.env["HF_TOKEN"] || readFileSync(process.env["HF_TOKEN_PATH"] ?? join(home, "token"), "utf8");
    return token.trim() || undefined;
  } catch {
    return undefined;
  }
}
