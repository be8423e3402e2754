import { ModelDataError } from "../base/errors.ts";
import { quoted, shown } from "../base/quoted.ts";
import { architectureOf } from "../gguf/architecture.ts";
import { isBlockType, LOADABLE_TYPES } from "../gguf/dequantize.ts";
import { GgufModel } from "../gguf/gguf-model.ts";
import type { GgufTensor } from "../gguf/header.ts";
import type { GgufMetadata } from "../gguf/metadata.ts";
import { checkpointName, ggufName } from "../gguf/tensor-names.ts";
import type { CheckpointFormat, CheckpointTensor } from "./checkpoint-tensor.ts";
import { refuseDtypes } from "./findings.ts";

const GGUF: CheckpointFormat = { storedName: ggufName, dtypes: LOADABLE_TYPES };
/** A part of the model's configuration, which `readModelConfig` reads. */
const ROPE_FACTORS = "rope_freqs.weight";

/**
 * Opens a GGUF model, which the caller closes. Its tensors have the names of a Hugging Face checkpoint; those that it stores in
 * another order of rows say so.
 * @throws as `GgufModel.open`; ModelDataError, too, when a tensor does not fit the metadata; UnsupportedModelError naming tensors of
 * types that cannot be loaded.
 */
export function openGguf(path: string) {
  const model = GgufModel.open(path);
  try {
    const { metadata, tensors } = model;
    const { name: prefix, pairsRows } = architectureOf(metadata);
    const entries = [...tensors].filter(([name]) => name !== ROPE_FACTORS);
    const others = entries.filter(([, { type }]) => !LOADABLE_TYPES.includes(type));
    refuseDtypes(
      others.map(([name, { type, file }]) => ({ path: file.path, text: `${shown(name)} (${type})` })),
      LOADABLE_TYPES,
    );
    return {
      opened: model,
      format: GGUF,
      tensors: new Map(
        entries.map(([name, tensor]): [string, CheckpointTensor] => {
          const { type: dtype, shape, begin, end, file } = tensor;
          if (shape.length === 1 && isBlockType(dtype))
            throw new ModelDataError(
              file.path,
              `tensor ${quoted(name)} is a vector of ${dtype}; allowed are floats`,
            );
          const pairedRows = pairsRows ? rowsOfHead(name, tensor, metadata, prefix) : undefined;
          const entry = { dtype, shape, begin, end, file };
          return [checkpointName(name), pairedRows === undefined ? entry : { ...entry, pairedRows }];
        }),
      ),
    };
  } catch (error) {
    model[Symbol.dispose]();
    throw error;
  }
}

/** Rows of a head of a query or key projection; undefined for any other tensor. */
function rowsOfHead(
  name: string,
  { shape }: GgufTensor,
  metadata: GgufMetadata,
  prefix: string,
): number | undefined {
  const part = /^blk\.\d+\.attn_([qk])\.(?:weight|bias)$/.exec(name)?.[1];
  if (part === undefined) return undefined;
  const heads = metadata.number(`${prefix}.attention.head_count`);
  const keyHeads = metadata.number(`${prefix}.attention.head_count_kv`) ?? heads;
  const rows = shape[0]! / ((part === "q" ? heads : keyHeads) ?? 0);
  if (Number.isSafeInteger(rows) && rows % 2 === 0) return rows;
  throw new ModelDataError(
    metadata.path,
    `tensor ${quoted(name)} [${shape.join(", ")}] is not of whole heads`,
  );
}
