import { UnsupportedModelError } from "../base/errors.ts";
import type { JsonFields } from "./json-fields.ts";

/**
 * Fields of other families' configs that change what a model computes, with the values besides null, false, 0 and what
 * is empty that do not. A supported family does not know them, so a config that sets one is not of that family.
 */
const REFUSED_FIELDS: Readonly<Record<string, readonly unknown[]>> = {
  // Attention.
  dual_chunk_attention_config: [],
  attention_chunk_size: [],
  attn_logit_softcapping: [],
  final_logit_softcapping: [],
  query_pre_attn_scalar: [],
  attention_multiplier: [],
  attention_value_scale: [1],
  attn_temperature_tuning: [],
  clip_qkv: [],
  alibi: [],
  use_qk_norm: [],
  qk_layernorm: [],
  // Of images alone: Octavo computes text.
  use_bidirectional_attention: ["vision"],
  attention_k_eq_v: [],
  num_kv_shared_layers: [],
  add_cross_attention: [],
  kv_lora_rank: [],
  q_lora_rank: [],
  sparse_attention: [],
  // Positions.
  no_rope_layers: [],
  no_rope_layer_interval: [],
  rope_interleaved: [],
  use_mrope: [],
  // The residual stream and the logits.
  embedding_multiplier: [1],
  residual_multiplier: [1],
  logits_scaling: [1],
  logit_scale: [1],
  scale_emb: [1],
  scale_depth: [],
  hidden_size_per_layer_input: [],
  parallel_residual: [],
  use_parallel_residual: [],
  // Experts.
  num_experts: [1],
  num_local_experts: [1],
  n_routed_experts: [1],
  moe_intermediate_size: [],
};

/**
 * @param known fields that this family has nevertheless
 * @throws UnsupportedModelError naming a field that would change results and that Octavo does not know
 */
export function refuseUnknownFields(json: JsonFields, known: ReadonlySet<string>): void {
  for (const [name, neutral] of Object.entries(REFUSED_FIELDS)) {
    const value = json.get(name);
    const isEmpty = typeof value === "object" && Object.keys(value as object).length === 0;
    if (known.has(name) || !value || isEmpty || neutral.includes(value)) continue;
    const shown = JSON.stringify(value).slice(0, 80);
    throw new UnsupportedModelError(
      json.file,
      `${json.nameOf(name)} = ${shown} is not supported by this architecture`,
    );
  }
}
