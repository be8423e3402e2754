import { UnsupportedModelError } from "../base/errors.ts";
import { isJsonObject } from "../base/json-object.ts";
import type { Architecture } from "./family-defaults.ts";
import type { JsonFields } from "./json-fields.ts";

/**
 * Models that feed images or sound to a language model, and whose text is computed as that model computes it: what they add, such as
 * positions in two dimensions, is nothing where there is only text.
 */
export const WRAPPERS: ReadonlySet<string> = new Set(
  [
    ...[
      "Gemma3",
      "Gemma4",
      "Mistral3",
      "Llava",
      "LlavaNext",
      "LlavaOnevision",
      "InternVL",
      "Idefics3",
      "SmolVLM",
    ],
    ...["Qwen2VL", "Qwen2_5_VL", "Qwen3VL", "Qwen3_5", "Qwen3_5Moe", "Voxtral", "Qwen2Audio"],
  ].map((name) => `${name}ForConditionalGeneration`),
);

/** Those whose text says by itself whether its head is its embedding; of the others the whole model does. */
const TEXT_TIES: ReadonlySet<string> = new Set(
  ["Llava", "LlavaOnevision", "Qwen2VL", "Qwen2_5_VL", "Mistral3", "InternVL"].map(
    (name) => `${name}ForConditionalGeneration`,
  ),
);

/** Their language models, by the `model_type` of these; older Qwen-VL files have all in one object, which goes by its own. */
const TEXT_MODELS: Readonly<Record<string, Architecture>> = {
  ...{ llama: "LlamaForCausalLM", mistral: "MistralForCausalLM", ministral3: "Ministral3ForCausalLM" },
  ...{ qwen2: "Qwen2ForCausalLM", qwen2_vl: "Qwen2ForCausalLM", qwen2_vl_text: "Qwen2ForCausalLM" },
  ...{ qwen2_5_vl: "Qwen2ForCausalLM", qwen2_5_vl_text: "Qwen2ForCausalLM" },
  ...{ qwen3: "Qwen3ForCausalLM", qwen3_vl_text: "Qwen3ForCausalLM" },
  ...{ qwen3_5_text: "Qwen3_5ForCausalLM", qwen3_5_moe_text: "Qwen3_5MoeForCausalLM" },
  ...{
    gemma2: "Gemma2ForCausalLM",
    gemma3_text: "Gemma3ForCausalLM",
    gemma4_text: "Gemma4ForCausalLM",
    smollm3: "SmolLM3ForCausalLM",
  },
};

/** Fields that the whole model's config may have in place of the text's. */
const SHARED = ["dtype", "torch_dtype", "quantization_config", "eos_token_id", "vocab_size"];
/** Of positions in two dimensions. */
const MROPE_FIELDS = ["mrope_section", "mrope_interleaved"];

/** Modules of a wrapper's checkpoint that are not its language model: all others than these. */
export const TOWERS = /^(?!model\.(?:embed_tokens(?:_per_layer)?|per_layer_\w+|layers|norm)\.|lm_head\.)/;

/** Modules of layers that guess further tokens, beside a language model. */
export const MTP = /^mtp\./;

/**
 * The config of a multimodal model's language model; undefined for any other model.
 * @throws UnsupportedModelError for one whose text Octavo does not know how to compute
 */
export function readTextConfig(json: JsonFields): JsonFields | undefined {
  const name = json.strings("architectures")?.[0] ?? "";
  const text = json.object("text_config");
  if (!WRAPPERS.has(name)) {
    if (text === undefined || json.has("hidden_size")) return undefined;
    const known = [...WRAPPERS].join(", ");
    throw new UnsupportedModelError(
      json.file,
      `the multimodal architecture ${name} is not supported; the text of these is: ${known}`,
    );
  }
  const fields = text ?? json;
  const type = fields.string("model_type");
  const architecture = Object.hasOwn(TEXT_MODELS, type) ? TEXT_MODELS[type]! : undefined;
  if (architecture === undefined) {
    const known = Object.keys(TEXT_MODELS).join(", ");
    throw new UnsupportedModelError(
      json.file,
      `text of ${name} with ${fields.nameOf("model_type")} ${JSON.stringify(type)} is not supported; supported are ${known}`,
    );
  }
  const outer = SHARED.filter((field) => json.has(field)).map((field) => [field, json.get(field)]);
  const [first, second] = TEXT_TIES.has(name) ? [fields, json] : [json, fields];
  const tie = first.get("tie_word_embeddings") ?? second.get("tie_word_embeddings");
  const ropes = ["rope_scaling", "rope_parameters"].map((field) => [field, withoutMrope(fields.get(field))]);
  return fields.withDefaults(Object.fromEntries(outer)).replacing({
    ...{ architectures: [architecture], ...(tie !== undefined && { tie_word_embeddings: tie }) },
    ...Object.fromEntries(ropes.filter(([, rope]) => rope !== undefined)),
  });
}

/** The rope that text has: its positions are the same in all dimensions. */
function withoutMrope(rope: unknown): unknown {
  if (!isJsonObject(rope)) return rope;
  const plain = Object.entries(rope).filter(([name]) => !MROPE_FIELDS.includes(name));
  return Object.fromEntries(
    plain.map(([name, value]) => [
      name,
      /^(?:rope_)?type$/.test(name) && value === "mrope" ? "default" : value,
    ]),
  );
}
