import { MXFP4_GROUP } from "../../backend/weight.ts";
import type { MatrixTensors, StoredMxfp4 } from "./stored-matrix.ts";

/**
 * `blocks` of packed codes and their `scales`, as gpt-oss has them, one matrix by itself.
 * @throws ModelDataError when a tensor is missing or has another shape; UnsupportedModelError for columns that are no whole blocks
 */
export function storedMxfp4(tensors: MatrixTensors): StoredMxfp4 {
  const { rows, columns } = tensors.matrix;
  const codes = tensors.find("blocks")!;
  const scales = tensors.require("scales", codes);
  if (columns % MXFP4_GROUP !== 0)
    throw tensors.unsupported(codes, `has ${columns} columns, which ${MXFP4_GROUP} does not divide`);
  tensors.checkShape(codes, rows, columns / 2);
  tensors.checkShape(scales, rows, columns / MXFP4_GROUP);
  return { form: "mxfp4", codes, scales };
}
