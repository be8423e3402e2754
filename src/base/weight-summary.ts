import { formatBytes } from "./bytes.ts";

/** The memory that weights take, for people. */
export interface WeightSummary {
  /** Forms of the matrices, those of the most weights first, e.g. `int4 in groups of 128, bfloat16`. */
  readonly format: string;
  /** Of all parameters, of all ranks together: what each of them holds, such as norms, as often. */
  readonly bytes: number;
  /** Types of a GGUF file's blocks that became floats, those of the most bytes first, and the bytes that these take of all. */
  readonly widened?: { readonly types: string; readonly bytes: number } | undefined;
  /** Tensors of a checkpoint that are not its language model's, and that nothing loads. */
  readonly skipped?: { readonly tensors: number; readonly bytes: number } | undefined;
}

/** The summary as a line says it. */
export function describeWeights({ format, bytes, widened, skipped }: WeightSummary): string {
  const floats =
    widened && `; ${formatBytes(widened.bytes)} of them are floats, of the file's ${widened.types}`;
  const rest =
    skipped &&
    `; the text model alone: ${skipped.tensors} other tensors (${formatBytes(skipped.bytes)}) are skipped`;
  return `${formatBytes(bytes)} in ${format}${floats ?? ""}${rest ?? ""}`;
}
