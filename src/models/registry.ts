import { WHOLE } from "../base/shard.ts";
import { denseScheme } from "../layers/weight-scheme.ts";
import { checkShard } from "./check-shard.ts";
import type { ModelConfig } from "./config.ts";
import type { Architecture } from "./family-defaults.ts";
import { gemma, gemma2, gemma3 } from "./gemma.ts";
import { gemma4 } from "./gemma4.ts";
import { gptNeoX } from "./gpt-neox.ts";
import { gptOss } from "./gpt-oss.ts";
import { granite } from "./granite.ts";
import { llama } from "./llama.ts";
import { mistral } from "./mistral.ts";
import { mixtral } from "./mixtral.ts";
import type { ModelDefinition, ModelFamily, ModelPart } from "./model.ts";
import { olmo2 } from "./olmo2.ts";
import { phi3 } from "./phi3.ts";
import { qwen2 } from "./qwen2.ts";
import { qwen2Moe } from "./qwen2-moe.ts";
import { qwen3 } from "./qwen3.ts";
import { qwen3_5, qwen3_5Moe, qwen3Next } from "./qwen3-5.ts";
import { qwen3Moe } from "./qwen3-moe.ts";

const FAMILIES: Readonly<Record<Architecture, ModelFamily>> = {
  Qwen3ForCausalLM: qwen3,
  Qwen2ForCausalLM: qwen2,
  LlamaForCausalLM: llama,
  MistralForCausalLM: mistral,
  Ministral3ForCausalLM: mistral,
  GPTNeoXForCausalLM: gptNeoX,
  Phi3ForCausalLM: phi3,
  Olmo2ForCausalLM: olmo2,
  Olmo3ForCausalLM: olmo2,
  SmolLM3ForCausalLM: llama,
  GraniteForCausalLM: granite,
  GemmaForCausalLM: gemma,
  Gemma2ForCausalLM: gemma2,
  Gemma3ForCausalLM: gemma3,
  Gemma4ForCausalLM: gemma4,
  Qwen3MoeForCausalLM: qwen3Moe,
  Qwen2MoeForCausalLM: qwen2Moe,
  Qwen3NextForCausalLM: qwen3Next,
  Qwen3_5ForCausalLM: qwen3_5,
  Qwen3_5MoeForCausalLM: qwen3_5Moe,
  MixtralForCausalLM: mixtral,
  GptOssForCausalLM: gptOss,
};

/**
 * @param part of the model; default all of it, with dense weights
 * @throws ConfigError when the model cannot be divided among so many ranks.
 */
export function defineModel(config: ModelConfig, part: Partial<ModelPart> = {}): ModelDefinition {
  const { shard = WHOLE, scheme = denseScheme } = part;
  checkShard(config, shard);
  return FAMILIES[config.architecture].define(config, { shard, scheme });
}
