import { mkdirSync, truncateSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import type { ListFileEntry } from "@huggingface/hub";
import { DownloadError, ModelDataError } from "../base/errors.ts";
import { checkedRevision, Hub, isOffline, smallFiles, weightFiles } from "./hub.ts";
import { MAX_HEADER_BYTES } from "./safetensors-header.ts";

/** Holds the headers of most files. */
const FIRST_BYTES = 2 ** 20;
/** Before a header stands its length. */
const LENGTH_BYTES = 8;

/**
 * Writes what is known of a Hugging Face model without its weights into a folder: configuration, tokenizer, and files of weights with
 * their headers and sizes, but holes in place of the weights. `inspectModel` can tell all from it; loading it would give zeros.
 * @throws as `resolveHubModel`
 */
export async function writeHubSkeleton(
  model: string,
  folder: string,
  options: { readonly revision?: string | undefined } = {},
): Promise<void> {
  const revision = checkedRevision(options.revision);
  if (isOffline())
    throw new DownloadError(`${model} has not been downloaded, and HF_HUB_OFFLINE is set`, undefined);
  const hub = Hub.open(model);
  try {
    const { commit, files } = await hub.list(revision);
    const write = async (entry: ListFileEntry, read: typeof beginning | typeof header): Promise<void> => {
      const path = join(folder, entry.path);
      const bytes = await read(hub, hub.url(commit, entry.path), entry, entry.size);
      mkdirSync(dirname(path), { recursive: true });
      writeFileSync(path, bytes);
      truncateSync(path, entry.size);
    };
    await Promise.all(smallFiles(model, files).map((entry) => write(entry, beginning)));
    for (const entry of weightFiles(model, files, folder)) await write(entry, header);
  } catch (error) {
    throw hub.explain(error, revision);
  }
}

/** The header of a file of weights, with its length. */
async function header(hub: Hub, url: string, entry: ListFileEntry): Promise<Uint8Array> {
  const first = await beginning(hub, url, entry, FIRST_BYTES);
  if (first.length < LENGTH_BYTES) return first;
  const length = LENGTH_BYTES + Number(new DataView(first.buffer).getBigUint64(0, true));
  if (length > LENGTH_BYTES + MAX_HEADER_BYTES)
    throw new ModelDataError(
      entry.path,
      `header of ${length - LENGTH_BYTES} bytes, at most ${MAX_HEADER_BYTES} are allowed`,
    );
  return length <= first.length ? first.subarray(0, length) : beginning(hub, url, entry, length);
}

/** The first `count` bytes of a file, or all of it if it has fewer; a server that sends more is not listened to. */
async function beginning(
  hub: Hub,
  url: string,
  { path }: ListFileEntry,
  count: number,
): Promise<Uint8Array<ArrayBuffer>> {
  const response = await hub.fetch(url, { headers: { Range: `bytes=0-${Math.max(count, 1) - 1}` } });
  if (!response.ok || response.body === null)
    throw new DownloadError(`${path}: HTTP ${response.status}`, response.status);
  const bytes = new Uint8Array(count);
  let length = 0;
  for await (const part of response.body as ReadableStream<Uint8Array>) {
    const wanted = part.subarray(0, count - length);
    bytes.set(wanted, length);
    length += wanted.length;
    if (length === count) break;
  }
  return bytes.slice(0, length);
}
