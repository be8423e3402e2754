import type { ParameterSource } from "../../base/parameter-spec.ts";
import type { SuperblocksReading } from "../../base/reading.ts";
import type { Span } from "../../base/shard.ts";
import type { SuperblockForm, SuperblockSources } from "./quantised-weight.ts";
import type { MatrixTensors, StoredSuperblocks } from "./stored-matrix.ts";

/** GGUF's types of blocks of 256 columns, with the form of each by itself. */
const FORMS = {
  Q4_K: { bits: 4, groupSize: 32, minima: true },
  Q5_K: { bits: 8, groupSize: 32, minima: true },
  Q6_K: { bits: 8, groupSize: 16, minima: false },
} as const satisfies Readonly<Record<SuperblocksReading["stored"], SuperblockForm>>;

export function isSuperblocks(dtype: string | undefined): dtype is SuperblocksReading["stored"] {
  return dtype !== undefined && Object.hasOwn(FORMS, dtype);
}

/** A matrix of a GGUF file in K-quants. It may also be loaded as floats. */
export function storedSuperblocks(
  tensors: MatrixTensors,
  stored: SuperblocksReading["stored"],
): StoredSuperblocks {
  const { rows, columns } = tensors.matrix;
  return {
    ...{
      form: "superblocks",
      stored,
      source: { name: tensors.find("weight")!.name, shape: [rows, columns] },
    },
    orFloats: true,
  };
}

/** The rows of a part of a product. */
interface Part {
  readonly stored: StoredSuperblocks;
  readonly rowSpan: Span;
}

/**
 * The form that all parts of a product have room in, and what is read for it: as many bits and as small groups as one of them needs. Where one has
 * minima, codes of another that has none stand for what they are, and its minimum is that of their middle.
 */
export function stackSuperblocks(
  parts: readonly Part[],
  columns: Span,
): { readonly form: SuperblockForm; readonly sources: SuperblockSources } {
  const forms = parts.map(({ stored }) => FORMS[stored.stored]);
  const form: SuperblockForm = {
    bits: forms.some(({ bits }) => bits === 8) ? 8 : 4,
    groupSize: forms.some(({ groupSize }) => groupSize === 16) ? 16 : 32,
    minima: forms.some(({ minima }) => minima),
  };
  const read = (part: SuperblocksReading["part"]) =>
    parts.map(({ stored: { stored, source }, rowSpan }): ParameterSource => {
      return { ...source, reading: { kind: "superblocks", stored, part, ...form, rows: rowSpan, columns } };
    });
  return { form, sources: { codes: read("codes"), steps: read("steps"), units: read("units") } };
}
