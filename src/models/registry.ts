import { join } from "node:path";
import { UnsupportedModelError } from "../base/errors.ts";
import { WHOLE } from "../base/shard.ts";
import { denseScheme } from "../layers/weight-scheme.ts";
import { checkShard } from "./check-shard.ts";
import type { ModelConfig } from "./config.ts";
import { llama } from "./llama.ts";
import { mistral } from "./mistral.ts";
import type { ModelDefinition, ModelFamily, ModelPart } from "./model.ts";
import { qwen2 } from "./qwen2.ts";
import { qwen3 } from "./qwen3.ts";

const FAMILIES: readonly ModelFamily[] = [qwen3, qwen2, llama, mistral];

/** Names of the architectures that can be loaded, as in config.json's `architectures`. */
export const SUPPORTED_ARCHITECTURES: readonly string[] = FAMILIES.flatMap((family) => family.architectures);

/**
 * @param part of the model; default all of it, with dense weights
 * @param folder of the model, for the message
 * @throws UnsupportedModelError naming the architecture and those that are supported; ConfigError when the model cannot
 * be divided among so many ranks.
 */
export function defineModel(
  config: ModelConfig,
  part: Partial<ModelPart> = {},
  folder = "",
): ModelDefinition {
  const family = FAMILIES.find(({ architectures }) => architectures.includes(config.architecture));
  if (family === undefined) {
    const known = SUPPORTED_ARCHITECTURES.join(", ");
    throw new UnsupportedModelError(
      join(folder, "config.json"),
      `architecture ${config.architecture} is not supported; supported are ${known}`,
    );
  }
  const { shard = WHOLE, scheme = denseScheme } = part;
  checkShard(config, shard);
  return family.define(config, { shard, scheme });
}
