import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type ModelConfig, readModelConfig } from "../../src/models/config.ts";
import { defineModel } from "../../src/models/registry.ts";
import { Random } from "../contract/random.ts";
import type { temporaryFolder } from "../support.ts";
import { safetensors } from "../unit/loader/support.ts";

const SMALL = {
  ...{ vocab_size: 208, hidden_size: 48, intermediate_size: 72, num_hidden_layers: 2, head_dim: 16 },
  ...{ num_attention_heads: 8, num_key_value_heads: 8, max_position_embeddings: 128, rms_norm_eps: 1e-6 },
  ...{ hidden_act: "silu", tie_word_embeddings: false },
};

/** A family each, with what the fixtures do not have: 8 heads, fewer key/value heads than ranks, biases. */
const FIELDS = {
  "llama with biases": { family: "Llama", attention_bias: true, mlp_bias: true },
  "qwen2, 1 key/value head": { family: "Qwen2", num_key_value_heads: 1, tie_word_embeddings: true },
  "qwen3, 2 key/value heads and biases": { family: "Qwen3", num_key_value_heads: 2, attention_bias: true },
  "mistral, 4 key/value heads": { family: "Mistral", num_key_value_heads: 4 },
};

export interface DivisibleModel {
  readonly name: string;
  readonly folder: string;
  /** Numbers of ranks to divide it among. */
  readonly sizes: readonly number[];
  /** Bytes of a KV block of 16 tokens of one of so many ranks. */
  readonly blockBytes: (size: number) => number;
}

/** Writes models of random weights that 2, 4 and 8 ranks can share. */
export function writeDivisibleModels({ file }: ReturnType<typeof temporaryFolder>): DivisibleModel[] {
  return Object.entries(FIELDS).map(([name, fields], i) =>
    writeModel(file(`model-${i}`), name, fields, i === 0),
  );
}

function writeModel(
  folder: string,
  name: string,
  { family, ...rest }: { readonly family: string },
  forEight: boolean,
): DivisibleModel {
  const type = { architectures: [`${family}ForCausalLM`], model_type: family.toLowerCase() };
  mkdirSync(folder);
  writeFileSync(join(folder, "config.json"), JSON.stringify({ ...SMALL, ...type, ...rest }));
  const config = readModelConfig(folder);
  writeWeights(folder, config);
  const blockBytes = (size: number) => {
    const heads = Math.max(1, config.numKvHeads / size);
    return 2 * config.numLayers * heads * config.headDim * 16 * 4;
  };
  return { name, folder, sizes: forEight ? [2, 4, 8] : [2, 4], blockBytes };
}

/** Random values for all that the config asks for, biases and norms included. */
function writeWeights(folder: string, config: ModelConfig): void {
  const random = new Random(7);
  const tensors = defineModel(config).parameters.flatMap(({ sources }) =>
    sources.map(({ name, shape }) => {
      const size = shape.reduce((product, extent) => product * extent, 1);
      return [name, { dtype: "F32", shape, data: random.normals(size, 0.2) }] as const;
    }),
  );
  writeFileSync(join(folder, "model.safetensors"), safetensors(Object.fromEntries(tensors)));
}
