import { writeFileSync } from "node:fs";
import { type ModelConfig, readModelConfig } from "../../../src/models/config.ts";
import { temporaryFolder } from "../../support.ts";

/** Llama 3.1 8B as its `config.json` has it, of four layers. */
export const LLAMA = {
  architectures: ["LlamaForCausalLM"],
  model_type: "llama",
  auto_map: { AutoModel: "evil.Model" },
  vocab_size: 128256,
  hidden_size: 4096,
  intermediate_size: 14336,
  num_hidden_layers: 4,
  num_attention_heads: 32,
  num_key_value_heads: 8,
  hidden_act: "silu",
  max_position_embeddings: 131072,
  rms_norm_eps: 1e-5,
  rope_theta: 500000,
  attention_bias: false,
  mlp_bias: false,
  tie_word_embeddings: false,
  bos_token_id: 128000,
  eos_token_id: [128001, 128008, 128009],
  torch_dtype: "bfloat16",
};
/** Fields of its rope scaling, of type `llama3`. */
export const LLAMA3_SCALING = {
  factor: 8,
  low_freq_factor: 1,
  high_freq_factor: 4,
  original_max_position_embeddings: 8192,
};

/** What is read of a folder with this `config.json`, its text or its value. */
export function readConfig(config: unknown): ModelConfig {
  using folder = temporaryFolder();
  writeFileSync(folder.file("config.json"), typeof config === "string" ? config : JSON.stringify(config));
  return readModelConfig(folder.path);
}
