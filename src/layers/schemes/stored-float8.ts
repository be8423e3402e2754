import { GROUP_UNIT, groupScales, scaleDtype } from "./stored-integers.ts";
import type { MatrixTensors, StoredFloat8, StoredIntegers } from "./stored-matrix.ts";

/** Rows and columns of a block. */
export const BLOCK = 128;

/**
 * `weight` in F8_E4M3 with its factors: `weight_scale_inv`, as DeepSeek and Qwen call those of blocks, or `weight_scale`, of blocks,
 * of output channels or of the whole tensor. Blocks' are [⌈N/128⌉, ⌈K/128⌉], or with an extent of 1 after each of the two as ModelOpt has
 * them. Whatever their name, weights are multiplied by them.
 * @throws ModelDataError when there are none, or they have another shape
 */
export function storedFloat8(tensors: MatrixTensors): StoredFloat8 {
  const { rows, columns } = tensors.matrix;
  const weight = tensors.find("weight")!;
  const scale = tensors.find("weight_scale_inv") ?? tensors.find("weight_scale");
  if (scale === undefined)
    throw tensors.invalid(
      weight,
      `is F8_E4M3 and needs "${tensors.matrix.source}.weight_scale", which is missing`,
    );
  tensors.checkShape(weight, rows, columns);
  const shape = scale.shape.join();
  const of = (granularity: "channel" | "block", rowsOfScale: number): StoredFloat8 => ({
    ...{ form: "float8", granularity, codes: weight, scales: scale, rowsOfScale },
  });
  if (shape === "" || shape === "1") return of("channel", rows);
  if (shape === `${rows}` || shape === `${rows},1`) return of("channel", 1);
  const blocks = [Math.ceil(rows / BLOCK), Math.ceil(columns / BLOCK)];
  if (shape === blocks.join() || shape === `${blocks[0]},1,${blocks[1]},1`) return of("block", BLOCK);
  throw tensors.invalid(
    scale,
    `is [${scale.shape.join(", ")}], expected one scale, ${rows} of output channels, or [${blocks.join(", ")}] of blocks of ${BLOCK} × ${BLOCK}`,
  );
}

/** `weight` in I8, symmetric, with a scale for each output channel. @throws ModelDataError when there is none */
export function storedInt8(tensors: MatrixTensors): StoredIntegers {
  const { rows, columns } = tensors.matrix;
  const weight = tensors.find("weight")!;
  const scale = tensors.require("weight_scale", weight);
  tensors.checkShape(weight, rows, columns);
  tensors.checkShape(scale, rows, 1);
  if (columns % GROUP_UNIT !== 0)
    throw tensors.unsupported(weight, `has ${columns} columns, which ${GROUP_UNIT} does not divide`);
  return {
    ...{
      form: "integers",
      bits: 8,
      groupSize: columns,
      scaleDtype: scaleDtype(tensors, scale),
      symmetric: true,
    },
    codes: (rowSpan, columnSpan) => ({
      ...{ name: weight.name, shape: weight.shape },
      reading: { kind: "bytes", stored: "I8", rows: rowSpan, columns: columnSpan },
    }),
    scales: groupScales(tensors, scale, { transposed: false }),
  };
}
