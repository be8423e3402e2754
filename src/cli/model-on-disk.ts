import { ModelNotFoundError } from "../base/errors.ts";
import { embeddedModel, isEmbedded } from "../llm/embedded-model.ts";
import { cachedModel, hubCacheFolder } from "../loader/cached-models.ts";
import { isHubId } from "../loader/hub-id.ts";
import { findLocalModel } from "../loader/resolve-model.ts";

/**
 * The folder or GGUF file of a model that this machine has: a path, an id of the Hugging Face cache, or the embedded model's name.
 * @throws ModelNotFoundError when it has not; nothing is downloaded.
 */
export function modelOnDisk(model: string, downloadDir?: string): string {
  if (isEmbedded(model)) return embeddedModel();
  const local = findLocalModel(model);
  if (local !== undefined) return local;
  if (!isHubId(model)) throw new ModelNotFoundError(model, `${model} does not exist`);
  const root = hubCacheFolder(downloadDir);
  const snapshot = cachedModel(root, model)?.snapshots[0];
  if (snapshot === undefined)
    throw new ModelNotFoundError(model, `${model} is not complete in ${root}: octavo pull ${model}`);
  return snapshot;
}
