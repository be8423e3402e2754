import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ModelNotFoundError } from "../base/errors.ts";
import { embeddedModel, isEmbedded } from "../llm/embedded-model.ts";
import { cachedModel, hubCacheFolder } from "../loader/cached-models.ts";
import { isHubId } from "../loader/hub-id.ts";
import { findLocalModel } from "../loader/resolve-model.ts";

/**
 * The folder or GGUF file of a model that this machine has: a path, an id of the Hugging Face cache, or the embedded model's name.
 * Undefined for an id of which nothing, or not all, has been downloaded.
 * @throws ModelNotFoundError for what is neither a path nor an id
 */
export function modelOnDisk(model: string): string | undefined {
  if (isEmbedded(model)) return embeddedModel();
  const local = findLocalModel(model);
  if (local !== undefined) return local;
  if (!isHubId(model)) throw new ModelNotFoundError(model, `${model} does not exist`);
  return cachedModel(hubCacheFolder(), model)?.snapshots[0];
}

/**
 * Calls `look` with a folder in which all but the weights of a model is: the model itself, or what the hub says of it.
 * @throws as `modelOnDisk` and `writeHubSkeleton`
 */
export async function lookAtModel(
  model: string,
  revision: string | undefined,
  look: (path: string) => Promise<void>,
): Promise<void> {
  const path = revision === undefined ? modelOnDisk(model) : undefined;
  if (path !== undefined) return look(path);
  const folder = mkdtempSync(join(tmpdir(), "octavo-"));
  try {
    const { writeHubSkeleton } = await import("../loader/hub-skeleton.ts");
    await writeHubSkeleton(model, folder, { revision });
    await look(folder);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
