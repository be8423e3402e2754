import { ModelDataError } from "../base/errors.ts";
import type { JsonObject } from "../base/json-object.ts";
import { readFully } from "../base/read-fully.ts";
import { architectureOf } from "../gguf/architecture.ts";
import { isBlockType } from "../gguf/dequantize.ts";
import { GgufFile } from "../gguf/gguf-file.ts";
import { GgufModel, type PlacedTensor } from "../gguf/gguf-model.ts";
import type { GgufMetadata } from "../gguf/metadata.ts";
import { JsonFields } from "./json-fields.ts";

/** Fields of config.json that are numbers, and the metadata that they are, without the architecture's name. */
const NUMBERS: Readonly<Record<string, string>> = {
  hidden_size: "embedding_length",
  intermediate_size: "feed_forward_length",
  num_hidden_layers: "block_count",
  num_attention_heads: "attention.head_count",
  num_key_value_heads: "attention.head_count_kv",
  head_dim: "attention.key_length",
  max_position_embeddings: "context_length",
  rms_norm_eps: "attention.layer_norm_rms_epsilon",
  rope_theta: "rope.freq_base",
  // Of other families: a config that has them is refused.
  num_local_experts: "expert_count",
  attention_multiplier: "attention.scale",
  attn_logit_softcapping: "attn_logit_softcapping",
  final_logit_softcapping: "final_logit_softcapping",
  attn_temperature_tuning: "attention.temperature_scale",
  clip_qkv: "attention.clamp_kqv",
  alibi: "attention.max_alibi_bias",
  embedding_multiplier: "embedding_scale",
  residual_multiplier: "residual_scale",
  logit_scale: "logit_scale",
};
/** Without which a model is not known: families' defaults are those of config.json alone. */
const REQUIRED: ReadonlySet<string> = new Set([
  ...["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"],
  ...["max_position_embeddings", "rms_norm_eps"],
]);
/**
 * Tokens that end a sequence, besides those that go by one of these names: a file says which one ends a text or a turn, and
 * not that another does, too.
 */
const END_NAMES: ReadonlySet<string> = new Set(
  "<|endoftext|> <|im_end|> <|eot_id|> <|eom_id|> <|end_of_text|> <|end|> <end_of_turn>".split(" "),
);
const END_TOKENS = ["eos", "eot", "eom"].map((name) => `tokenizer.ggml.${name}_token_id`);
/** Fields of generation_config.json, and the metadata that they are. */
const SAMPLING: Readonly<Record<string, string>> = {
  temperature: "general.sampling.temp",
  top_p: "general.sampling.top_p",
  top_k: "general.sampling.top_k",
  min_p: "general.sampling.min_p",
  repetition_penalty: "general.sampling.penalty_repeat",
};
const ROPE_FACTORS = "rope_freqs.weight";
const MAX_ROPE_FACTORS = 512;

/**
 * The fields of a config.json for the model of a GGUF file, from its metadata and the tensors that it has, and whether all matrices of
 * its layers are floats. Messages about a field name the entry that it came from.
 * @throws ModelNotFoundError, ModelDataError or UnsupportedModelError as `GgufModel.open`, and for entries that are missing,
 * of a wrong type, or of models that Octavo cannot run.
 */
export function readGgufConfig(path: string): { readonly json: JsonFields; readonly isFloats: boolean } {
  using model = GgufModel.open(path);
  const { metadata, tensors } = model;
  const architecture = architectureOf(metadata);
  const entry = (name: string) => `${architecture.name}.${name}`;
  const number = (name: string) => metadata.number(entry(name));

  const fields: Record<string, unknown> = { architectures: [architecture.model] };
  const keys: Record<string, string> = {
    vocab_size: "token_embd.weight",
    partial_rotary_factor: entry("rope.dimension_count"),
    "rope_scaling.factor": entry("rope.scaling.factor"),
    "rope_scaling.original_max_position_embeddings": entry("rope.scaling.original_context_length"),
    "rope_scaling.factors": ROPE_FACTORS,
    eos_token_id: END_TOKENS.join(", "),
  };
  for (const [field, name] of Object.entries(NUMBERS)) {
    keys[field] = entry(name);
    if (typeof metadata.get(entry(name)) === "object")
      throw metadata.unsupported(entry(name), "; layers must not differ");
    fields[field] = number(name);
    if (fields[field] === undefined && REQUIRED.has(field)) throw metadata.invalid(entry(name), "a number");
  }
  refuseOthers(metadata, entry);

  const { hidden_size: hidden, num_attention_heads: heads } = fields as Record<string, number>;
  const headDim = number("attention.key_length") ?? hidden! / heads!;
  fields["head_dim"] = headDim;
  fields["num_key_value_heads"] ??= heads;
  if ((number("attention.value_length") ?? headDim) !== headDim)
    throw metadata.unsupported(entry("attention.value_length"), `; keys have ${headDim} dimensions`);
  // As many as the embedding has rows: a tokenizer may know fewer.
  const embedding = tensors.get("token_embd.weight");
  if (embedding === undefined) throw new ModelDataError(path, "missing tensors: token_embd.weight");
  fields["vocab_size"] = embedding.shape[0];
  fields["tie_word_embeddings"] = !tensors.has("output.weight");
  fields["attention_bias"] = tensors.has("blk.0.attn_q.bias");
  fields["mlp_bias"] = tensors.has("blk.0.ffn_gate.bias");
  fields["partial_rotary_factor"] = rotatedShare(metadata, entry, headDim, architecture.pairsRows);
  const factors = tensors.get(ROPE_FACTORS);
  fields["rope_scaling"] =
    factors === undefined
      ? ropeScaling(metadata, entry("rope"))
      : { rope_type: "factors", factors: readRopeFactors(factors) };
  const ends = END_TOKENS.map((key) => metadata.tokenId(key)).filter((id) => id !== undefined);
  ends.push(...(metadata.list("tokenizer.ggml.tokens")?.positionsOf(END_NAMES) ?? []));
  fields["eos_token_id"] = ends.length > 0 ? ends : null;
  const isFloats = ![...tensors].some(([name, { type }]) => name.startsWith("blk.") && isBlockType(type));
  return { json: JsonFields.of(path, fields, keys), isFloats };
}

/** The fields of a generation_config.json for the model of a GGUF file. @throws as `GgufFile.open` */
export function readGgufSampling(path: string): JsonFields {
  const { metadata } = GgufFile.header(path);
  const fields = Object.entries(SAMPLING).map(([field, key]) => [field, metadata.number(key)]);
  return JsonFields.of(path, Object.fromEntries(fields), SAMPLING);
}

/**
 * The share of a head's dimensions that positions rotate: all, unless the file says otherwise.
 * @param pairsRows see `GgufArchitecture`: of heads that are rotated in part, no order of rows is known
 */
function rotatedShare(
  metadata: GgufMetadata,
  entry: (name: string) => string,
  headDim: number,
  pairsRows: boolean,
): number {
  const key = entry("rope.dimension_count");
  const dims = metadata.number(key) ?? headDim;
  // What is wrong with the heads themselves is told by who reads them.
  if (dims === headDim || !Number.isSafeInteger(headDim)) return 1;
  if (dims < 2 || dims > headDim || dims % 2 !== 0)
    throw metadata.invalid(key, `an even number from 2 to the ${headDim} dimensions of a head`);
  if (pairsRows) throw metadata.unsupported(key, `; heads have ${headDim} dimensions`);
  return dims / headDim;
}

/** @throws UnsupportedModelError for entries that change what a model computes, and that no family here has */
function refuseOthers(metadata: GgufMetadata, entry: (name: string) => string): void {
  for (const name of ["attention.sliding_window", "pooling_type", "rope.dimension_sections"]) {
    const value = metadata.get(entry(name));
    if (value !== undefined && value !== 0) throw metadata.unsupported(entry(name));
  }
  if (metadata.boolean(entry("attention.causal")) === false)
    throw metadata.unsupported(entry("attention.causal"));
}

/** @param rope the prefix of the entries, e.g. `llama.rope` */
function ropeScaling(metadata: GgufMetadata, rope: string): JsonObject | undefined {
  const key = `${rope}.scaling.type`;
  const number = (name: string) => metadata.number(`${rope}.scaling.${name}`);
  const linear = metadata.number(`${rope}.scale_linear`) ?? 1;
  const kind = metadata.string(key) ?? (linear === 1 ? "none" : "linear");
  if (kind === "none") return undefined;
  const factor = number("factor") ?? linear;
  if (kind === "linear") return { rope_type: kind, factor };
  if (kind !== "yarn") throw metadata.unsupported(key, "; supported are none, linear and yarn");
  for (const [name, neutral] of [
    ["yarn_ext_factor", 1],
    ["yarn_log_multiplier", 0],
  ] as const) {
    if ((number(name) ?? neutral) !== neutral) throw metadata.unsupported(`${rope}.scaling.${name}`);
  }
  const temperature = (number("attn_factor") ?? 1) * (number("yarn_attn_factor") ?? 1);
  return {
    ...{ rope_type: kind, factor },
    original_max_position_embeddings: number("original_context_length"),
    beta_fast: number("yarn_beta_fast"),
    beta_slow: number("yarn_beta_slow"),
    attention_factor: temperature * (0.1 * Math.log(factor) + 1),
  };
}

/** The divisors of Llama 3's frequencies, one for each pair of rotated dimensions. */
function readRopeFactors({ type, shape, begin, end, file }: PlacedTensor): number[] {
  const { path, fd } = file;
  if (type !== "F32" || shape.length !== 1 || shape[0]! > MAX_ROPE_FACTORS) {
    const expected = `a list of at most ${MAX_ROPE_FACTORS} F32`;
    throw new ModelDataError(path, `${ROPE_FACTORS} must be ${expected}, not ${type} [${shape.join(", ")}]`);
  }
  const bytes = new Uint8Array(end - begin);
  readFully(path, fd, bytes, begin);
  return [...new Float32Array(bytes.buffer)];
}
