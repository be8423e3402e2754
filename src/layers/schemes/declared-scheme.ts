import type { Weight } from "../../backend/weight.ts";
import { UnsupportedModelError } from "../../base/errors.ts";
import { lengthOf } from "../../base/shard.ts";
import { denseScheme, LM_HEAD, type MatrixSpec, type WeightScheme } from "../weight-scheme.ts";
import { float8Weight, type GetParameter, groupedWeight, mxfp4Weight } from "./quantised-weight.ts";
import { rowsThatFit } from "./rows-that-fit.ts";
import { BLOCK } from "./stored-float8.ts";
import { GROUP_UNIT } from "./stored-integers.ts";

/** The form that all of a model's matrices have but the LM head and those that are `exact`. */
export type DeclaredForm =
  | { readonly kind: "floats" }
  /** Of experts alone. */
  | { readonly kind: "mxfp4" }
  | { readonly kind: "float8"; readonly granularity: "channel" | "block" }
  | {
      readonly kind: "integers";
      readonly bits: 4 | 8;
      /** −1: a whole row. */
      readonly groupSize: number;
      readonly zeros: boolean;
    };

const EXPERT = /\.experts\.\d+\./;

/** Weights without a checkpoint to look at, for `loadFormat: "dummy"`: parameters of a form, and the LM head's, made of nothing. */
export function declaredScheme(form: DeclaredForm, head: DeclaredForm = { kind: "floats" }): WeightScheme {
  return {
    weight(matrix, get) {
      const own = matrix.name === LM_HEAD ? head : form;
      return own.kind === "floats" || matrix.exact
        ? denseScheme.weight(matrix, get)
        : declaredWeight(own, matrix, get);
    },
  };
}

function declaredWeight(
  form: Exclude<DeclaredForm, { kind: "floats" }>,
  matrix: MatrixSpec,
  get: GetParameter,
): Weight {
  const { name, parts, columnSpan } = matrix;
  const rows = parts.reduce((sum, { rowSpan }) => sum + lengthOf(rowSpan), 0);
  const columns = lengthOf(columnSpan);
  const shape = [rows, columns] as const;
  if (form.kind === "mxfp4")
    return parts.every(({ source }) => EXPERT.test(source))
      ? mxfp4Weight(get, name, shape, { codes: [], scales: [] })
      : denseScheme.weight(matrix, get);
  if (form.kind === "float8") {
    const isBlock = form.granularity === "block";
    const blockRows = isBlock ? rowsThatFit(parts.map(({ rowSpan }) => rowSpan)) : 1;
    const blockColumns = isBlock ? BLOCK : columns;
    return float8Weight(get, name, { shape, blockRows, blockColumns }, { codes: [], scales: [] });
  }
  const { bits, zeros } = form;
  const groupSize = form.groupSize === -1 ? columns : form.groupSize;
  if (groupSize % GROUP_UNIT !== 0 || columns % groupSize !== 0)
    throw new UnsupportedModelError(name, `${columns} columns in groups of ${groupSize} are not supported`);
  return groupedWeight(
    get,
    name,
    { shape, bits, groupSize, scaleDtype: "float16" },
    { codes: [], scales: [], zeros: zeros ? [] : undefined, permutation: undefined },
  );
}
