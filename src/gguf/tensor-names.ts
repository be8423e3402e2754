/** Parts of a layer: GGUF's name, and that of a Hugging Face checkpoint. */
const LAYER_PARTS: readonly (readonly [gguf: string, checkpoint: string])[] = [
  ["attn_norm", "input_layernorm"],
  ["attn_q", "self_attn.q_proj"],
  ["attn_k", "self_attn.k_proj"],
  ["attn_v", "self_attn.v_proj"],
  ["attn_output", "self_attn.o_proj"],
  ["attn_q_norm", "self_attn.q_norm"],
  ["attn_k_norm", "self_attn.k_norm"],
  ["ffn_norm", "post_attention_layernorm"],
  ["ffn_gate", "mlp.gate_proj"],
  ["ffn_up", "mlp.up_proj"],
  ["ffn_down", "mlp.down_proj"],
];
/** Parts outside the layers. */
const MODEL_PARTS: typeof LAYER_PARTS = [
  ["token_embd", "model.embed_tokens"],
  ["output_norm", "model.norm"],
  ["output", "lm_head"],
];

const TO_CHECKPOINT = new Map([...LAYER_PARTS, ...MODEL_PARTS]);
const TO_GGUF = new Map([...LAYER_PARTS, ...MODEL_PARTS].map(([gguf, checkpoint]) => [checkpoint, gguf]));

/** The name that a tensor of a GGUF file has in a Hugging Face checkpoint; its own where it has none. */
export function checkpointName(name: string): string {
  const [, layer, part = "", kind] = /^(?:blk\.(\d+)\.)?([a-z_]+)\.(weight|bias)$/.exec(name) ?? [];
  const translated = TO_CHECKPOINT.get(part);
  const isOfLayer = LAYER_PARTS.some(([gguf]) => gguf === part);
  if (translated === undefined || isOfLayer !== (layer !== undefined)) return name;
  return `${layer === undefined ? "" : `model.layers.${layer}.`}${translated}.${kind}`;
}

/** The name in a GGUF file of a checkpoint's tensor; its own where it has none. */
export function ggufName(name: string): string {
  const [, layer, part = "", kind] =
    /^(?:model\.layers\.(\d+)\.)?([a-z_.]+)\.(weight|bias)$/.exec(name) ?? [];
  const translated = TO_GGUF.get(part);
  if (translated === undefined) return name;
  return `${layer === undefined ? "" : `blk.${layer}.`}${translated}.${kind}`;
}
