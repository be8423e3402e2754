import type { DeltaNetShape } from "../backend/delta-net.ts";
import { UnsupportedModelError } from "../base/errors.ts";
import type { JsonFields } from "./json-fields.ts";

/** The layers of a hybrid that have linear attention, and what it is. */
export interface LinearAttentionConfig extends DeltaNetShape {
  /** Whether each layer has it; the others have attention. */
  readonly layers: readonly boolean[];
}

/** Layers of a period, unless the config says otherwise: the last of them has attention. */
const FULL_ATTENTION_INTERVAL = 4;

/** @throws ModelDataError naming a field that is out of range; UnsupportedModelError for layers of another kind */
export function readLinearAttention(json: JsonFields, numLayers: number): LinearAttentionConfig {
  const count = (field: string, fallback: number) => json.integer(field, 1, 4096, fallback);
  const numKeyHeads = count("linear_num_key_heads", 16);
  const numValueHeads = count("linear_num_value_heads", 32);
  if (numValueHeads % numKeyHeads !== 0)
    throw json.invalid("linear_num_value_heads", `a multiple of ${numKeyHeads} key heads`);
  if (json.string("hidden_act", "silu") !== "silu")
    throw new UnsupportedModelError(
      json.file,
      "hidden_act of linear attention other than silu is not supported",
    );
  if (!json.boolean("attn_output_gate", true))
    throw new UnsupportedModelError(
      json.file,
      "attn_output_gate = false is not supported by this architecture",
    );
  const layers = readLayers(json, numLayers);
  if (layers.every(Boolean))
    throw new UnsupportedModelError(
      json.file,
      "a model without any layer of full attention is not supported",
    );
  return Object.freeze({
    ...{ numKeyHeads, numValueHeads },
    keyDim: count("linear_key_head_dim", 128),
    valueDim: count("linear_value_head_dim", 128),
    convWidth: json.integer("linear_conv_kernel_dim", 2, 16, 4),
    layers: Object.freeze(layers),
  });
}

function readLayers(json: JsonFields, numLayers: number): boolean[] {
  const types = json.strings("layer_types");
  if (types === undefined) {
    const interval = json.integer("full_attention_interval", 1, 1e6, FULL_ATTENTION_INTERVAL);
    return Array.from({ length: numLayers }, (_, layer) => (layer + 1) % interval !== 0);
  }
  if (types.length !== numLayers) throw json.invalid("layer_types", `a list of ${numLayers} types`);
  return types.map((type) => {
    if (type !== "linear_attention" && type !== "full_attention")
      throw new UnsupportedModelError(json.file, `layer type ${JSON.stringify(type)} is not supported`);
    return type === "linear_attention";
  });
}
