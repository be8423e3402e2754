import type { MatrixTensors, StoredIntegers } from "./stored-matrix.ts";

/** GGUF's types of blocks that are groups of codes with a float16 each, and the bits of a code. */
const BITS = { Q4_0: 4, Q8_0: 8 } as const;
export type GroupedBlocks = keyof typeof BITS;

/** Columns of a block. */
const COLUMNS = 32;

export function isGroupedBlocks(dtype: string | undefined): dtype is GroupedBlocks {
  return dtype !== undefined && Object.hasOwn(BITS, dtype);
}

/**
 * A matrix of a GGUF file in blocks of one float16 scale and 32 codes, of which the middle of the range stands for 0: the same
 * numbers as groups of 32. It may also be loaded as floats.
 */
export function storedBlocks(tensors: MatrixTensors, stored: GroupedBlocks): StoredIntegers {
  const { rows, columns } = tensors.matrix;
  const source = { name: tensors.find("weight")!.name, shape: [rows, columns] };
  return {
    ...{ form: "integers", bits: BITS[stored], groupSize: COLUMNS, scaleDtype: "float16", symmetric: true },
    orFloats: true,
    codes: (rowSpan, columnSpan) => ({
      ...source,
      reading: { kind: "blocks", stored, part: "codes", rows: rowSpan, columns: columnSpan },
    }),
    scales: (rowSpan, { start, end }) => ({
      ...source,
      reading: {
        ...{ kind: "blocks", stored, part: "scales", rows: rowSpan },
        columns: { start: start * COLUMNS, end: end * COLUMNS },
      },
    }),
  };
}
