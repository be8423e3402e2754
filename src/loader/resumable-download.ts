import { constants } from "node:fs";
import { type FileHandle, open, rename, rm, stat } from "node:fs/promises";
import { DownloadError, messageOf } from "../base/errors.ts";

const MAX_ATTEMPTS = 5;
const FIRST_RETRY_MS = 250;

/** A file of the hub, whose content never changes. */
export interface RemoteFile {
  /** For messages. */
  readonly name: string;
  readonly url: string;
  /** Bytes. */
  readonly size: number;
  /** Lower-case hex; `git` is SHA-1 over git's blob header and the content. */
  readonly digest: { readonly kind: "sha256" | "git"; readonly hex: string } | undefined;
}

export interface DownloadOptions {
  /** Adds what the server needs, e.g. the token. */
  readonly fetch: (url: string, init: RequestInit) => Promise<Response>;
  readonly signal: AbortSignal;
  /** Bytes of the file present so far. */
  readonly onProgress: (bytes: number) => void;
}

/**
 * Downloads to `<target>.incomplete` and renames it when size and digest are right, so `target` is whole or absent.
 * The rest of an interrupted download is fetched by a Range request, in this call (after a dropped connection or a
 * busy server, five attempts without progress at most) or in a later one. Two downloads of one file write the same
 * bytes at the same offsets and do not disturb each other.
 * @throws DownloadError, with the HTTP status if there was one; the error of the file system when writing fails.
 */
export async function downloadFile(
  file: RemoteFile,
  target: string,
  options: DownloadOptions,
): Promise<void> {
  const partial = `${target}.incomplete`;
  const handle = await open(partial, constants.O_RDWR | constants.O_CREAT, 0o644);
  try {
    await fetchAll(file, handle, options);
    if (file.digest !== undefined && (await digestOf(handle, file.digest.kind)) !== file.digest.hex) {
      await rm(partial, { force: true });
      const problem = "the downloaded bytes do not match the hub's checksum; try again";
      throw new DownloadError(`${file.name}: ${problem}`, undefined);
    }
    // Someone else may have completed the file meanwhile: then `partial` is gone, or a third one's and not whole.
    const { ino } = await handle.stat();
    const failure: unknown = await stat(partial)
      .then((found) => (found.ino === ino ? rename(partial, target) : undefined))
      .catch((error: unknown) => error);
    const { size } = await stat(target).catch(() => ({ size: -1 }));
    if (size !== file.size)
      throw new DownloadError(`${file.name}: cannot complete ${target}`, undefined, { cause: failure });
  } finally {
    await handle.close();
  }
}

/** Fetches what the file lacks, again after a dropped connection. */
async function fetchAll(file: RemoteFile, handle: FileHandle, options: DownloadOptions): Promise<void> {
  for (let attempt = 1, reached = 0; ; attempt++) {
    let { size: at } = await handle.stat();
    if (at > file.size) {
      await handle.truncate(0);
      at = 0;
    }
    if (at > reached) attempt = 1;
    reached = Math.max(reached, at);
    options.onProgress(at);
    if (at === file.size) return;
    try {
      await fetchFrom(at, file, handle, options);
    } catch (error) {
      const retry = error instanceof DownloadError && isTransient(error.status) && !options.signal.aborted;
      if (!retry || attempt >= MAX_ATTEMPTS) throw error;
      await Bun.sleep(FIRST_RETRY_MS * 2 ** (attempt - 1));
    }
  }
}

/** Writes the bytes from `at` on. */
async function fetchFrom(
  at: number,
  file: RemoteFile,
  handle: FileHandle,
  options: DownloadOptions,
): Promise<void> {
  const dropped = (error: unknown): never => {
    const reason = `connection failed after ${at} of ${file.size} bytes: ${messageOf(error)}`;
    throw new DownloadError(`${file.name}: ${reason}`, undefined, { cause: error });
  };
  const headers = { Range: `bytes=${at}-`, "Accept-Encoding": "identity" };
  const response = await options.fetch(file.url, { headers, signal: options.signal }).catch(dropped);
  if (!response.ok) throw new DownloadError(`${file.name}: HTTP ${response.status}`, response.status);
  // A server that ignores Range sends the whole file again.
  if (response.status !== 206) at = 0;
  else if (response.headers.get("content-range") !== `bytes ${at}-${file.size - 1}/${file.size}`)
    throw new DownloadError(`${file.name}: the server sent another range or size than asked for`, 206);

  const reader = response.body?.getReader();
  while (reader !== undefined) {
    const { done, value } = await reader.read().catch(dropped);
    if (done) break;
    if (at + value.length > file.size)
      throw new DownloadError(
        `${file.name}: larger than the ${file.size} bytes the hub reports`,
        response.status,
      );
    for (let written = 0; written < value.length; ) {
      const { bytesWritten } = await handle.write(value, written, value.length - written, at + written);
      written += bytesWritten;
    }
    at += value.length;
    options.onProgress(at);
  }
  if (at < file.size) dropped("the server closed it early");
}

function isTransient(status: number | undefined): boolean {
  return status === undefined || status === 408 || status === 429 || status >= 500;
}

async function digestOf(handle: FileHandle, kind: "sha256" | "git"): Promise<string> {
  const hasher = new Bun.CryptoHasher(kind === "git" ? "sha1" : "sha256");
  if (kind === "git") hasher.update(`blob ${(await handle.stat()).size}\0`);
  const chunk = new Uint8Array(1024 * 1024);
  for (let at = 0; ; ) {
    const { bytesRead } = await handle.read(chunk, 0, chunk.length, at);
    if (bytesRead === 0) return hasher.digest("hex");
    hasher.update(chunk.subarray(0, bytesRead));
    at += bytesRead;
  }
}
