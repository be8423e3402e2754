import type { ExpertSpec, LimitedSwiglu } from "../backend/experts.ts";
import type { JsonFields } from "./json-fields.ts";

/** The experts of a model, where it has any. */
export interface ExpertsConfig {
  /** Experts of a layer, and of a token. */
  readonly count: number;
  readonly perToken: number;
  /** Of one expert. */
  readonly intermediateSize: number;
  /** Of the expert that all tokens go through; 0 = none. */
  readonly sharedIntermediateSize: number;
  readonly softmaxOver: ExpertSpec["softmaxOver"];
  /** Present where the gated activation is gpt-oss's. */
  readonly limitedSwiglu?: LimitedSwiglu | undefined;
  /** Layers with experts have a dense block of the model's intermediate size beside them. */
  readonly areBesideDense: boolean;
  /** Whether each layer has them; the others are dense, of the model's intermediate size. */
  readonly layers: readonly boolean[];
}

/** The defaults of a family, as transformers' configuration class has them, and what its configs cannot change. */
export interface ExpertsDefaults {
  readonly count: number;
  readonly perToken: number;
  /** Undefined: the experts' size is the model's intermediate size. */
  readonly intermediateSize: number | undefined;
  readonly sharedIntermediateSize: number;
  /** Undefined: as `norm_topk_prob` says. */
  readonly softmaxOver: ExpertSpec["softmaxOver"] | undefined;
  readonly limitedSwiglu?: { readonly alpha: number; readonly limit: number };
  /** Default false. */
  readonly areBesideDense?: boolean;
}

/** Fields of a config.json that no dense model may have. */
export const EXPERT_FIELDS = ["num_experts", "num_local_experts", "moe_intermediate_size"] as const;

/** @throws ModelDataError naming a field that is out of range */
export function readExpertsConfig(
  json: JsonFields,
  defaults: ExpertsDefaults,
  numLayers: number,
  modelIntermediateSize: number,
): ExpertsConfig {
  const countField = json.has("num_experts") ? "num_experts" : "num_local_experts";
  const most = Math.min(MAX_EXPERTS, Math.floor(MAX_EXPERTS_OF_ALL / numLayers));
  const count = json.integer(countField, 1, most, defaults.count);
  const { intermediateSize = modelIntermediateSize, sharedIntermediateSize } = defaults;
  const isFixed = defaults.intermediateSize === undefined;
  const step = json.integer("decoder_sparse_step", 1, 1024, 1);
  const dense = readDenseLayers(json);
  const renormalised = json.boolean("norm_topk_prob", false) ? "chosen" : "all";
  return Object.freeze({
    count,
    perToken: json.integer("num_experts_per_tok", 1, Math.min(count, MAX_PER_TOKEN), defaults.perToken),
    intermediateSize: isFixed
      ? intermediateSize
      : json.integer("moe_intermediate_size", 1, 1e7, intermediateSize),
    sharedIntermediateSize:
      sharedIntermediateSize === 0
        ? 0
        : json.integer("shared_expert_intermediate_size", 1, 1e7, sharedIntermediateSize),
    softmaxOver: defaults.softmaxOver ?? renormalised,
    limitedSwiglu: defaults.limitedSwiglu && {
      kind: "limited_swiglu" as const,
      alpha: json.number("swiglu_alpha", 1e-6, 1e6, defaults.limitedSwiglu.alpha),
      limit: json.number("swiglu_limit", 1e-6, 1e6, defaults.limitedSwiglu.limit),
    },
    areBesideDense: defaults.areBesideDense ?? false,
    layers: Object.freeze(
      Array.from({ length: numLayers }, (_, layer) => !dense.has(layer) && (layer + 1) % step === 0),
    ),
  });
}

/** More than any model has: of a token, of a layer, and of all layers together, as each has matrices of its own. */
const MAX_PER_TOKEN = 64;
const MAX_EXPERTS = 4096;
const MAX_EXPERTS_OF_ALL = 2 ** 16;

function readDenseLayers(json: JsonFields): ReadonlySet<unknown> {
  const layers = json.get("mlp_only_layers") ?? [];
  if (Array.isArray(layers) && layers.every(Number.isSafeInteger)) return new Set(layers);
  throw json.invalid("mlp_only_layers", "a list of layers");
}
