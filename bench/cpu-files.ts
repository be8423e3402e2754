import { closeSync, cpSync, openSync, readFileSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";

/** A config's fields that a file of random weights needs. */
interface Shapes {
  readonly vocab_size: number;
  readonly hidden_size: number;
  readonly intermediate_size: number;
  readonly num_hidden_layers: number;
  readonly num_attention_heads: number;
  readonly num_key_value_heads: number;
  readonly head_dim: number;
  readonly rms_norm_eps: number;
  readonly rope_theta: number;
  readonly max_position_embeddings: number;
}

/** Types of GGUF values and tensors. */
const [U32, F32, STRING, LIST] = [4, 6, 8, 9];
const FLOAT = 0;
const MATRICES = { BF16: 30, Q4_0: 2, Q4_K: 12 } as const;
const { BF16, Q4_0, Q4_K } = MATRICES;
const ALIGNMENT = 32;

/** A folder of the model's config with its matrices declared to be of 4 bits, in groups of 128, for `loadFormat: "dummy"`. */
export function writeQuantisedConfig(model: string, folder: string): void {
  const config = JSON.parse(readFileSync(join(model, "config.json"), "utf8"));
  const quantization_config = { quant_method: "awq", bits: 4, group_size: 128 };
  cpSync(model, folder, { recursive: true });
  writeFileSync(join(folder, "config.json"), JSON.stringify({ ...config, quantization_config }));
}

/**
 * A GGUF file of a Qwen3 config's shapes with random weights, for other engines, too: matrices of one type, the embedding, which is the
 * LM head as well, in bfloat16.
 */
export function writeGguf(model: string, path: string, matrices: keyof typeof MATRICES): void {
  const c = JSON.parse(readFileSync(join(model, "config.json"), "utf8")) as Shapes;
  const { hidden_size: hidden, head_dim: dim, intermediate_size: middle } = c;
  const tensors: { name: string; type: number; shape: number[] }[] = [];
  const matrix = (name: string, rows: number, columns: number, type: number = MATRICES[matrices]) =>
    tensors.push({ name: `${name}.weight`, type, shape: [rows, columns] });
  const norm = (name: string, size: number) =>
    tensors.push({ name: `${name}.weight`, type: FLOAT, shape: [size] });
  matrix("token_embd", c.vocab_size, hidden, BF16);
  norm("output_norm", hidden);
  for (let i = 0; i < c.num_hidden_layers; i++) {
    const [queries, keys] = [c.num_attention_heads * dim, c.num_key_value_heads * dim];
    matrix(`blk.${i}.attn_q`, queries, hidden);
    matrix(`blk.${i}.attn_k`, keys, hidden);
    matrix(`blk.${i}.attn_v`, keys, hidden);
    matrix(`blk.${i}.attn_output`, hidden, queries);
    matrix(`blk.${i}.ffn_gate`, middle, hidden);
    matrix(`blk.${i}.ffn_up`, middle, hidden);
    matrix(`blk.${i}.ffn_down`, hidden, middle);
    norm(`blk.${i}.attn_norm`, hidden);
    norm(`blk.${i}.ffn_norm`, hidden);
    norm(`blk.${i}.attn_q_norm`, dim);
    norm(`blk.${i}.attn_k_norm`, dim);
  }
  const metadata: [string, number, Buffer][] = [
    ["general.architecture", STRING, text("qwen3")],
    ["qwen3.block_count", U32, u32(c.num_hidden_layers)],
    ["qwen3.context_length", U32, u32(c.max_position_embeddings)],
    ["qwen3.embedding_length", U32, u32(hidden)],
    ["qwen3.feed_forward_length", U32, u32(middle)],
    ["qwen3.attention.head_count", U32, u32(c.num_attention_heads)],
    ["qwen3.attention.head_count_kv", U32, u32(c.num_key_value_heads)],
    ["qwen3.attention.key_length", U32, u32(dim)],
    ["qwen3.attention.value_length", U32, u32(dim)],
    ["qwen3.attention.layer_norm_rms_epsilon", F32, f32(c.rms_norm_eps)],
    ["qwen3.rope.freq_base", F32, f32(c.rope_theta)],
    ["tokenizer.ggml.model", STRING, text("gpt2")],
    ["tokenizer.ggml.pre", STRING, text("qwen2")],
    ["tokenizer.ggml.tokens", LIST, list(Array.from({ length: c.vocab_size }, (_, id) => `t${id}`))],
    ["tokenizer.ggml.merges", LIST, list(["t 0"])],
    ["tokenizer.ggml.eos_token_id", U32, u32(0)],
  ];
  const infos: Buffer[] = [];
  let end = 0;
  for (const { name, type, shape } of tensors) {
    const extents = shape.toReversed().map((extent) => u64(extent));
    infos.push(text(name), u32(shape.length), ...extents, u32(type), u64(end));
    end += aligned(bytesOf(type, shape));
  }
  const header = Buffer.concat([
    ...[Buffer.from("GGUF"), u32(3), u64(tensors.length), u64(metadata.length)],
    ...metadata.flatMap(([key, type, value]) => [text(key), u32(type), value]),
    ...infos,
  ]);
  const file = openSync(path, "w");
  writeSync(file, Buffer.concat([header, Buffer.alloc(aligned(header.length) - header.length)]));
  for (const { type, shape } of tensors) writeSync(file, contents(type, aligned(bytesOf(type, shape))));
  closeSync(file);
}

function bytesOf(type: number, shape: readonly number[]): number {
  const elements = shape.reduce((product, extent) => product * extent, 1);
  if (type === Q4_0) return (elements / 32) * 18;
  if (type === Q4_K) return (elements / 256) * 144;
  return type === BF16 ? 2 * elements : 4 * elements;
}

function aligned(bytes: number): number {
  return Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;
}

/** Numbers of a size that keeps a model's activations finite; norms are ones. */
function contents(type: number, bytes: number): Uint8Array {
  const data = Buffer.alloc(bytes);
  if (type === FLOAT) for (let i = 0; i + 4 <= bytes; i += 4) data.writeFloatLE(1, i);
  let state = 1;
  const random = () => {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    return state >>> 16;
  };
  if (type === BF16) {
    // ±(1 to 2) / 64
    for (let i = 0; i + 2 <= bytes; i += 2) data.writeUInt16LE(0x3c80 | (random() & 0x807f), i);
  }
  if (type === Q4_0) {
    for (let i = 0; i + 18 <= bytes; i += 18) {
      data.writeUInt16LE(0x1800, i);
      for (let j = 2; j < 18; j += 2) data.writeUInt16LE(random(), i + j);
    }
  }
  if (type === Q4_K) {
    // Minima that are 7.5 scales in the mean.
    for (let i = 0; i + 144 <= bytes; i += 144) {
      data.writeUInt16LE(0x0600, i);
      data.writeUInt16LE(0x1180, i + 2);
      for (let j = 4; j < 144; j += 2) data.writeUInt16LE(random(), i + j);
    }
  }
  return data;
}

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

function u64(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
}

function f32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeFloatLE(value);
  return bytes;
}

function text(value: string): Buffer {
  return Buffer.concat([u64(Buffer.byteLength(value)), Buffer.from(value)]);
}

function list(values: readonly string[]): Buffer {
  return Buffer.concat([u32(STRING), u64(values.length), ...values.map(text)]);
}
