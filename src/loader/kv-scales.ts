import type { KvScales } from "../backend/backend.ts";
import { dtypeSize, type FloatDType, widen } from "../base/dtype.ts";
import { ModelDataError } from "../base/errors.ts";
import { readFully } from "../base/read-fully.ts";
import type { Checkpoint } from "./checkpoint.ts";

/** What calibration leaves of a layer's attention, after `model.layers.N.self_attn.`: for its cache, and for what Octavo keeps in 16 bits. */
const CALIBRATION =
  /^model\.layers\.\d+\.self_attn\.(?:(?:attn\.)?(?:[kqv]|kv|prob)_(?:scale|zero_point)|qkv_proj\.[kv]_scale|k_proj\.(?:k|output)_scale|v_proj\.(?:v|output)_scale)$/;

/** Checkpoint tensors that are no weights: `readKvScales` reads them, or nobody does. */
export const CALIBRATION_TENSORS: readonly RegExp[] = [CALIBRATION];

/**
 * The names of a layer's scale of keys, or of values, as compressed-tensors, ModelOpt and AutoFP8 have written them, and of
 * the one for both.
 */
function namesOf(kind: "k" | "v"): string[] {
  const scales = [
    `${kind}_scale`,
    `attn.${kind}_scale`,
    `${kind}_proj.${kind}_scale`,
    `qkv_proj.${kind}_scale`,
    `${kind}_proj.output_scale`,
  ];
  return [...scales, "kv_scale", "attn.kv_scale"];
}

/** The dtypes of scales, by safetensors' names. */
const DTYPES: ReadonlyMap<string, FloatDType> = new Map([
  ["F32", "float32"],
  ["BF16", "bfloat16"],
  ["F16", "float16"],
]);
/** Scales of one head each are few. */
const MAX_SCALES = 4096;

/**
 * The scales that a checkpoint was calibrated with for keys and values in eight bits, of each layer. A layer with a scale for
 * keys or values alone has it for both; one of 0 or less counts as none. Of scales for each head a layer takes the greatest:
 * floating point loses nothing but what is 2^15 times smaller than the largest value.
 * @param layers those that have a cache
 * @throws ModelDataError for a scale that is no number, or of another dtype.
 */
export function readKvScales(checkpoint: Checkpoint, layers: readonly number[]): KvScales[] {
  return layers.map((layer) => {
    const first = (kind: "k" | "v") => {
      for (const name of namesOf(kind)) {
        const scale = readScale(checkpoint, `model.layers.${layer}.self_attn.${name}`);
        if (scale !== undefined && scale > 0) return scale;
      }
      return undefined;
    };
    const [key, value] = [first("k"), first("v")];
    return { keyScale: key ?? value ?? 1, valueScale: value ?? key ?? 1 };
  });
}

/** The greatest of a tensor's elements; undefined if there is no such tensor. */
function readScale({ tensors }: Checkpoint, name: string): number | undefined {
  const tensor = tensors.get(name);
  if (tensor === undefined) return undefined;
  const { file, begin, end } = tensor;
  const fail = (rule: string) => new ModelDataError(file.path, `tensor "${name}" ${rule}`);
  const dtype = DTYPES.get(tensor.dtype);
  if (dtype === undefined)
    throw fail(`is a scale in ${tensor.dtype}, expected ${[...DTYPES.keys()].join(", ")}`);
  const count = (end - begin) / dtypeSize(dtype);
  if (count === 0 || count > MAX_SCALES) throw fail(`has ${count} scales, expected 1 to ${MAX_SCALES}`);
  const bytes = new Uint8Array(end - begin);
  readFully(file.path, file.fd, bytes, begin);
  const values = new Float32Array(count);
  widen(bytes, dtype, values);
  const greatest = values.reduce((most, value) => Math.max(most, value), -Infinity);
  if (!Number.isFinite(greatest)) throw fail("is a scale that is no finite number");
  return greatest;
}
