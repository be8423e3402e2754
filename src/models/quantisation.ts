import { UnsupportedModelError } from "../base/errors.ts";
import { isJsonObject } from "../base/json-object.ts";
import { quoted, shown } from "../base/quoted.ts";
import type { DeclaredForm } from "../layers/schemes/declared-scheme.ts";
import type { GptqZeros } from "../layers/schemes/stored-integers.ts";
import { JsonFields } from "./json-fields.ts";

/**
 * A checkpoint's statement of how its weights are quantised, checked for what Octavo cannot do. Which matrices are, and in which form,
 * is told by the tensors that are there.
 */
export interface QuantisationConfig {
  /** `quant_method`, e.g. `compressed-tensors`. */
  readonly method: string;
  readonly gptqZeros: GptqZeros;
  /** All matrices of integers have zero points: one without them has lost a tensor. */
  readonly needsZeros: boolean;
  /** All say in which order their columns are, likewise. */
  readonly needsOrder: boolean;
  /**
   * The form of matrices where there are no tensors to look at: with `loadFormat: "dummy"`. Floats where only the cache was
   * calibrated, or a GGUF file has no blocks; undefined where nothing but the tensors tells.
   */
  readonly declared: DeclaredForm | undefined;
}

/**
 * That of a GGUF file, each of whose tensors says by itself how it is stored.
 * @param isFloats all matrices of its layers are floats
 */
export function ggufQuantisation(isFloats: boolean): QuantisationConfig {
  const declared: DeclaredForm | undefined = isFloats ? { kind: "floats" } : undefined;
  return { method: "gguf", gptqZeros: "v1", needsZeros: false, needsOrder: false, declared };
}

/** A remedy for what is refused. */
const WOULD_WORK =
  'what would: the model in 16 bits, with quantization: "fp8" if it is too large, or a checkpoint in FP8, AWQ, GPTQ of 4 or 8 bits, or compressed-tensors';

/** Files of older checkpoints, and where in them the settings are. */
const OLDER_FILES: readonly (readonly [file: string, method: string | undefined, field?: string])[] = [
  ["hf_quant_config.json", "modelopt", "quantization"],
  ["quantize_config.json", "gptq"],
  ["quant_config.json", "awq"],
];

const READERS: Readonly<Record<string, (json: JsonFields) => DeclaredForm>> = {
  fp8: readFp8,
  fbgemm_fp8: () => ({ kind: "float8", granularity: "channel" }),
  modelopt: readModelOpt,
  "compressed-tensors": readCompressedTensors,
  gptq: readGptq,
  awq: readAwq,
  mxfp4: () => ({ kind: "mxfp4" }),
  "auto-round": readAutoRound,
  "intel/auto-round": readAutoRound,
};

/**
 * The quantisation that `quantization_config` of config.json states, or a file of its own in older checkpoints.
 * @returns undefined for a model in floats
 * @throws UnsupportedModelError naming the method or the setting that is not supported, and what would work; ModelDataError for a
 * setting that is out of range
 */
export function readQuantisation(config: JsonFields, folder: string): QuantisationConfig | undefined {
  const stated =
    config.object("quantization_config") ?? config.object("compression_config") ?? mlxSettings(config);
  if (stated !== undefined) return quantisationOf(stated, methodOf(stated));
  for (const [file, method, field] of OLDER_FILES) {
    const json = JsonFields.read(folder, file);
    const settings = field === undefined ? json : json?.object(field);
    if (settings !== undefined) return quantisationOf(settings, method ?? methodOf(settings));
  }
  return undefined;
}

/** MLX's own field, which its converter writes beside or instead of `quantization_config`. */
function mlxSettings(config: JsonFields): JsonFields | undefined {
  const settings = isJsonObject(config.get("quantization")) ? config.object("quantization") : undefined;
  return settings !== undefined && isMlx(settings) ? settings : undefined;
}

function isMlx(json: JsonFields): boolean {
  return !json.has("quant_method") && json.has("group_size") && json.has("bits");
}

/** `desc_act` of GPTQ, or an `actorder` of each of compressed-tensors' groups that is kept in the file. */
function hasOrder(json: JsonFields): boolean {
  if (json.boolean("desc_act", false)) return true;
  const groups = json.get("config_groups");
  const all = isJsonObject(groups) ? Object.values(groups) : [];
  const orders = all.map((group) => {
    const weights = isJsonObject(group) ? group["weights"] : undefined;
    return isJsonObject(weights) ? weights["actorder"] : undefined;
  });
  return orders.length > 0 && orders.every((order) => order === "group" || order === "dynamic");
}

function hasZeros(form: DeclaredForm): boolean {
  return form.kind === "integers" && form.zeros;
}

function methodOf(json: JsonFields): string {
  if (json.has("quant_algo")) return "modelopt";
  if (json.has("config_groups")) return "compressed-tensors";
  // As older versions of transformers wrote it.
  if (!json.has("quant_method") && (json.has("load_in_4bit") || json.has("load_in_8bit")))
    return "bitsandbytes";
  if (isMlx(json)) return "mlx";
  return json.string("quant_method").toLowerCase();
}

function quantisationOf(json: JsonFields, method: string): QuantisationConfig {
  const read = Object.hasOwn(READERS, method) ? READERS[method] : undefined;
  if (read === undefined) throw unsupported(json, `quantised weights (${shown(method)}) are`);
  const declared = read(json);
  const needs = { needsZeros: hasZeros(declared), needsOrder: hasOrder(json) };
  return { method, gptqZeros: readGptqZeros(json), ...needs, declared };
}

function unsupported(json: JsonFields, what: string): UnsupportedModelError {
  return new UnsupportedModelError(json.file, `${what} not supported; ${WOULD_WORK}`);
}

function readFp8(json: JsonFields): DeclaredForm {
  const block = json.get("weight_block_size");
  if (block === undefined) return { kind: "float8", granularity: "channel" };
  checkBlock(json, "weight_block_size", block);
  return { kind: "float8", granularity: "block" };
}

function checkBlock(json: JsonFields, name: string, block: unknown): void {
  if (JSON.stringify(block) !== "[128,128]")
    throw unsupported(json, `${name} ${JSON.stringify(block)?.slice(0, 40)} instead of [128,128] is`);
}

function readModelOpt(json: JsonFields): DeclaredForm {
  // The cache alone was calibrated.
  if (!json.has("quant_algo") && json.has("kv_cache_quant_algo")) return { kind: "floats" };
  const algorithm = json.string("quant_algo").toUpperCase();
  if (algorithm === "FP8" || algorithm === "FP8_PER_CHANNEL_PER_TOKEN")
    return { kind: "float8", granularity: "channel" };
  if (algorithm === "FP8_PB_WO" || algorithm === "FP8_BLOCK_SCALES")
    return { kind: "float8", granularity: "block" };
  throw unsupported(json, `ModelOpt's ${shown(algorithm)} is`);
}

function readGptq(json: JsonFields): DeclaredForm {
  const bits = json.integer("bits", 1, 32, 4);
  if (bits !== 4 && bits !== 8) throw unsupported(json, `GPTQ of ${bits} bits is`);
  const layout = json.string("checkpoint_format", "gptq");
  if (layout !== "gptq" && layout !== "gptq_v2")
    throw unsupported(json, `GPTQ's layout ${quoted(layout)} is`);
  const groupSize = json.integer("group_size", -1, 2 ** 20, -1);
  return { kind: "integers", bits, groupSize, zeros: !json.boolean("sym", true) };
}

function readGptqZeros(json: JsonFields): GptqZeros {
  const format = json.string(json.has("checkpoint_format") ? "checkpoint_format" : "format", "gptq");
  return format === "gptq_v2" ? "v2" : "v1";
}

function readAwq(json: JsonFields): DeclaredForm {
  const bits = json.integer(json.has("bits") ? "bits" : "w_bit", 1, 32, 4);
  if (bits !== 4) throw unsupported(json, `AWQ of ${bits} bits is`);
  const version = json.string(json.has("version") ? "version" : "format", "gemm").toLowerCase();
  if (version !== "gemm") throw unsupported(json, `AWQ's layout ${quoted(version)} instead of "gemm" is`);
  const groupSize = json.integer(json.has("group_size") ? "group_size" : "q_group_size", -1, 2 ** 20, 128);
  return { kind: "integers", bits, groupSize, zeros: json.boolean("zero_point", true) };
}

function readAutoRound(json: JsonFields): DeclaredForm {
  const packing = json.string("packing_format", "auto_round:auto_gptq");
  if (packing.endsWith("auto_gptq")) return readGptq(json);
  if (packing.endsWith("auto_awq")) return readAwq(json);
  throw unsupported(json, `AutoRound's packing_format ${quoted(packing)} is`);
}

/** `mixed-precision`: each group has its own. */
const COMPRESSED_FORMATS = new Set([
  ...["dense", "float-quantized", "naive-quantized", "int-quantized", "pack-quantized", "mixed-precision"],
]);
const MAX_GROUPS = 256;

function readCompressedTensors(json: JsonFields): DeclaredForm {
  for (const name of ["transform_config", "sparsity_config"]) {
    const fields = json.object(name);
    const isNone = fields === undefined || hasNone(fields) || fields.get("format") === "dense";
    if (!isNone) throw unsupported(json, `compressed-tensors' ${name} is`);
  }
  checkFormat(json);
  const groups = json.get("config_groups");
  const names = isJsonObject(groups) ? Object.keys(groups) : [];
  // The cache alone was calibrated.
  if (names.length === 0 && json.has("kv_cache_scheme")) return { kind: "floats" };
  if (names.length === 0 || names.length > MAX_GROUPS)
    throw json.invalid("config_groups", `an object of 1 to ${MAX_GROUPS} groups`);
  const fields = json.object("config_groups")!;
  const forms = names.flatMap((name) => {
    const group = fields.object(name);
    if (group === undefined) return [];
    checkFormat(group);
    if (group.has("output_activations"))
      throw unsupported(json, "compressed-tensors' output_activations are");
    const weights = group.object("weights");
    return weights === undefined ? [] : [readCompressedWeights(weights)];
  });
  // Of several, one without zero points: then not all have them.
  return forms.find((form) => !hasZeros(form)) ?? forms[0] ?? { kind: "floats" };
}

/** True for settings of no group. */
function hasNone(fields: JsonFields): boolean {
  const groups = fields.get("config_groups");
  return fields.isEmpty || (isJsonObject(groups) && Object.keys(groups).length === 0);
}

function checkFormat(json: JsonFields): void {
  const format = json.string("format", "pack-quantized");
  if (!COMPRESSED_FORMATS.has(format))
    throw unsupported(json, `compressed-tensors' format ${quoted(format)} is`);
}

function readCompressedWeights(json: JsonFields): DeclaredForm {
  const bits = json.integer("num_bits", 1, 64, 8);
  const type = json.string("type", "int");
  const groupSize = json.integer("group_size", -1, 2 ** 20, -1);
  const strategy = json.string("strategy", groupSize > 0 ? "group" : "channel");
  if (type === "float" && bits === 8) {
    if (strategy === "block") checkBlock(json, "block_structure", json.get("block_structure"));
    else if (strategy !== "channel" && strategy !== "tensor")
      throw unsupported(json, `compressed-tensors' float weights with strategy ${quoted(strategy)} are`);
    return { kind: "float8", granularity: strategy === "block" ? "block" : "channel" };
  }
  if (type === "int" && (bits === 4 || bits === 8) && (strategy === "group" || strategy === "channel"))
    return { kind: "integers", bits, groupSize, zeros: !json.boolean("symmetric", true) };
  throw unsupported(
    json,
    `compressed-tensors' ${shown(type)} weights of ${bits} bits with strategy ${quoted(strategy)} are`,
  );
}
