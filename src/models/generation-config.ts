import type { SamplingParams } from "../base/sampling-params.ts";
import { isGgufModel } from "../gguf/gguf-file.ts";
import type { ModelConfig } from "./config.ts";
import { readGgufSampling } from "./gguf-config.ts";
import { JsonFields } from "./json-fields.ts";

/** The recommendations of a model's authors for generation. */
export interface GenerationConfig {
  /** Tokens that end a sequence. */
  readonly eosTokenIds: readonly number[];
  /** Recommended sampling; fields that the model does not mention are absent. */
  readonly sampling: Readonly<
    Pick<SamplingParams, "temperature" | "topP" | "topK" | "minP" | "repetitionPenalty">
  >;
}

/**
 * Reads a model folder's `generation_config.json`, if there is one, or a GGUF file's sampling entries. Without
 * end-of-sequence ids there, those of the model config hold. `do_sample: false` drops temperature, top-p, top-k and min-p,
 * which it makes meaningless.
 * @param path the folder or the file
 * @throws ModelDataError naming a field that is out of range.
 */
export function readGenerationConfig(path: string, model: ModelConfig): GenerationConfig {
  const json = isGgufModel(path) ? readGgufSampling(path) : JsonFields.read(path, "generation_config.json");
  if (json === undefined) {
    return Object.freeze({
      eosTokenIds: model.eosTokenIds,
      sampling: Object.freeze({}),
    });
  }
  const random = {
    temperature: json.number("temperature", 0, 2, undefined),
    topP: json.number("top_p", Number.MIN_VALUE, 1, undefined),
    topK: json.integer("top_k", -1, 2 ** 31 - 1, undefined),
    minP: json.number("min_p", 0, 1, undefined),
  };
  const repetitionPenalty = json.number("repetition_penalty", Number.MIN_VALUE, Number.MAX_VALUE, undefined);
  const sampling = { ...(json.boolean("do_sample", true) ? random : {}), repetitionPenalty };
  return Object.freeze({
    eosTokenIds: Object.freeze(json.tokenIds("eos_token_id", model.vocabSize) ?? model.eosTokenIds),
    sampling: Object.freeze(
      Object.fromEntries(Object.entries(sampling).filter(([, value]) => value !== undefined)),
    ),
  });
}
