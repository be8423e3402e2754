import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { f32, gguf, type TensorInput, type Value } from "./gguf-writer.ts";

/** Makes GGUF files of model folders, as llama.cpp's converter does, without the code under test. */

interface AddedToken {
  readonly id: number;
  readonly content: string;
  readonly special?: boolean;
}

/** The fields of tokenizer.json and tokenizer_config.json that a GGUF file tells, too. */
export interface Definition {
  readonly model: { readonly vocab: Record<string, number>; readonly merges: (string | string[])[] };
  readonly added_tokens: readonly AddedToken[];
}
export type Config = Readonly<Record<string, unknown>>;

export const KIND = { normal: 1, unknown: 2, control: 3, userDefined: 4, unused: 5, byte: 6 };

/** Tokens and their kinds as llama.cpp's converter writes them. */
export function vocabulary(definition: Definition, config: Config): Record<string, Value> {
  const ids = new Map(Object.entries(definition.model.vocab));
  const kinds = new Map<string, number>();
  const decoder = Object.entries((config["added_tokens_decoder"] ?? {}) as Record<string, AddedToken>);
  const added = [...definition.added_tokens, ...decoder.map(([id, token]) => ({ ...token, id: Number(id) }))];
  for (const { id, content, special } of added) {
    ids.set(content, id);
    kinds.set(content, special ? KIND.control : KIND.userDefined);
  }
  const tokens: string[] = [];
  for (const [token, id] of ids) tokens[id] = token;
  const types = Array.from(tokens, (token = "") => kinds.get(token) ?? KIND.normal);
  // The embedding is wider than the vocabulary.
  const size = Math.ceil((tokens.length + 1) / 64) * 64;
  for (let id = 0; id < size; id++) {
    if (tokens[id] !== undefined) continue;
    tokens[id] = `[PAD${id}]`;
    types[id] = KIND.unused;
  }
  const named = ["bos", "eos"].flatMap((name) => {
    const value = config[`${name}_token`] as string | { content: string } | null | undefined;
    const id = ids.get((typeof value === "object" ? value?.content : value) ?? "");
    return id === undefined ? [] : [[`tokenizer.ggml.${name}_token_id`, id] as const];
  });
  return {
    "tokenizer.ggml.tokens": tokens,
    "tokenizer.ggml.token_type": { type: "i32", value: types },
    ...Object.fromEntries(named),
  };
}

export function readJson<T>(folder: string, name: string): T {
  return JSON.parse(readFileSync(join(folder, name), "utf8")) as T;
}

/** A byte-level tokenizer's files, as metadata. */
export function byteLevel(
  folder: string,
  pre: string,
  more: Record<string, Value> = {},
): Record<string, Value> {
  const definition = readJson<Definition>(folder, "tokenizer.json");
  const { merges } = definition.model;
  return {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": pre,
    ...vocabulary(definition, readJson<Config>(folder, "tokenizer_config.json")),
    "tokenizer.ggml.merges": merges.map((merge) => (typeof merge === "string" ? merge : merge.join(" "))),
    ...more,
  };
}

/** The number of a safetensors dtype in GGUF. */
const TYPE_IDS: Readonly<Record<string, number>> = { F32: 0, F16: 1, BF16: 30 };

/** Parts of a layer by their names in a folder. */
const PARTS: Readonly<Record<string, string>> = {
  ...{ "model.embed_tokens": "token_embd", "model.norm": "output_norm", lm_head: "output" },
  ...{ input_layernorm: "attn_norm", post_attention_layernorm: "ffn_norm" },
  ...{ "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v" },
  ...{
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
  },
  ...{ "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down" },
};

/** Writes a folder's Qwen3 model, its tensors as they are, to a GGUF file. */
export function writeGgufModel(folder: string, path: string, more: Record<string, Value> = {}): void {
  writeFileSync(path, gguf(modelOf(folder, more)));
}

/** Splits it among two files. @returns the path of the first */
export function writeSplitGgufModel(folder: string, target: string): string {
  const { metadata, tensors } = modelOf(folder, {});
  const [first, second] = [1, 2].map((part) => join(target, `tiny-0000${part}-of-00002.gguf`)) as [
    string,
    string,
  ];
  const entries = Object.entries(tensors);
  const numbered = (part: number): Record<string, Value> => ({ "split.no": part, "split.count": 2 });
  const half = (part: number) => Object.fromEntries(entries.filter((_, i) => i % 2 === part));
  writeFileSync(first, gguf({ metadata: { ...metadata, ...numbered(0) }, tensors: half(0) }));
  writeFileSync(second, gguf({ metadata: numbered(1), tensors: half(1) }));
  return first;
}

function modelOf(folder: string, more: Record<string, Value>) {
  const config = readJson<Record<string, number>>(folder, "config.json");
  const entries = {
    "general.architecture": "qwen3",
    "qwen3.block_count": config["num_hidden_layers"]!,
    "qwen3.context_length": config["max_position_embeddings"]!,
    "qwen3.embedding_length": config["hidden_size"]!,
    "qwen3.feed_forward_length": config["intermediate_size"]!,
    "qwen3.attention.head_count": config["num_attention_heads"]!,
    "qwen3.attention.head_count_kv": config["num_key_value_heads"]!,
    "qwen3.attention.key_length": config["head_dim"]!,
    "qwen3.attention.layer_norm_rms_epsilon": f32(config["rms_norm_eps"]!),
    "qwen3.rope.freq_base": f32(config["rope_theta"]!),
  };
  const template = readJson<Config>(folder, "tokenizer_config.json")["chat_template"] as string;
  const tokenizer = { ...byteLevel(folder, "qwen2"), "tokenizer.chat_template": template };
  const metadata = { ...entries, ...tokenizer, ...more };
  return { metadata, tensors: readTensors(join(folder, "model.safetensors")) };
}

function readTensors(path: string): Record<string, TensorInput> {
  const file = readFileSync(path);
  const start = 8 + Number(file.readBigUInt64LE(0));
  const header = JSON.parse(file.toString("utf8", 8, start));
  const tensors: Record<string, TensorInput> = {};
  for (const [name, { dtype, shape, data_offsets }] of Object.entries<{
    dtype: string;
    shape: number[];
    data_offsets: [number, number];
  }>(header)) {
    if (name === "__metadata__") continue;
    const [, layer, part = "", kind] = /^(?:model\.layers\.(\d+)\.)?(.+)\.(weight|bias)$/.exec(name)!;
    const data = file.subarray(start + data_offsets[0], start + data_offsets[1]);
    const stored = `${layer === undefined ? "" : `blk.${layer}.`}${PARTS[part]!}.${kind}`;
    tensors[stored] = { type: TYPE_IDS[dtype]!, shape, data };
  }
  return tensors;
}
