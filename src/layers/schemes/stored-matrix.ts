import { ModelDataError, UnsupportedModelError } from "../../base/errors.ts";
import type { ParameterSource } from "../../base/parameter-spec.ts";
import type { SuperblocksReading } from "../../base/reading.ts";
import type { Span } from "../../base/shard.ts";
import type { StoredShape, TensorDirectory } from "../../base/tensor-directory.ts";
import type { MatrixName } from "../weight-scheme.ts";

/** One of a checkpoint's matrices [N, K], as it is stored. */
export type StoredMatrix = StoredFloats | StoredFloat8 | StoredIntegers | StoredMxfp4 | StoredSuperblocks;

export interface StoredFloats {
  readonly form: "floats";
}

export interface StoredFloat8 {
  readonly form: "float8";
  /** Each output channel has a scale, if only because the whole tensor has one; or each block of 128 × 128. */
  readonly granularity: "channel" | "block";
  readonly codes: StoredName;
  readonly scales: StoredName;
  /** Rows of the matrix that a row of scales is for. */
  readonly rowsOfScale: number;
}

export interface StoredIntegers {
  readonly form: "integers";
  readonly bits: 4 | 8;
  readonly groupSize: number;
  readonly scaleDtype: "float16" | "bfloat16";
  /** Every zero point is the middle of the range. */
  readonly symmetric: boolean;
  /** The matrix can be loaded as floats, too, where groups do not fit: parts of a product that differ, ranks that cut groups. */
  readonly orFloats?: boolean;
  /** The order of columns in which those of a group are neighbours, and the tensor that says so. */
  readonly permutation?: { readonly values: Int32Array; readonly source: StoredName } | undefined;
  /** Readings of rows and of columns, which are whole groups; `zeros` where the file has any. */
  codes(rows: Span, columns: Span): ParameterSource;
  scales(rows: Span, groups: Span): ParameterSource;
  zeros?(rows: Span, groups: Span): ParameterSource;
}

/** `blocks` of codes and their `scales`, of which nothing is converted. */
export interface StoredMxfp4 {
  readonly form: "mxfp4";
  readonly codes: StoredName;
  readonly scales: StoredName;
}

/** Blocks of 256 columns of a GGUF file. */
export interface StoredSuperblocks {
  readonly form: "superblocks";
  readonly stored: SuperblocksReading["stored"];
  readonly source: StoredName;
  /** See `StoredIntegers`. */
  readonly orFloats: true;
}

/** A tensor's name and the shape that it must have. */
export interface StoredName {
  readonly name: string;
  readonly shape: readonly number[];
}

/** Looks tensors of one matrix up, and says what is wrong with them. */
export class MatrixTensors {
  constructor(
    private readonly directory: TensorDirectory,
    readonly matrix: MatrixName,
  ) {}

  /** @param suffix as in `model.layers.0.mlp.up_proj.weight_scale` */
  find(suffix: string): (StoredShape & StoredName) | undefined {
    const name = `${this.matrix.source}.${suffix}`;
    const stored = this.directory.find(name);
    return stored && { ...stored, name };
  }

  /** @throws ModelDataError when it is missing; `beside` is the tensor that needs it. */
  require(suffix: string, beside: StoredShape & StoredName): StoredShape & StoredName {
    const found = this.find(suffix);
    if (found === undefined)
      throw this.invalid(beside, `needs "${this.matrix.source}.${suffix}", which is missing`);
    return found;
  }

  words(stored: StoredName): Int32Array {
    return this.directory.words(stored.name);
  }

  invalid({ name, file }: StoredShape & StoredName, rule: string): ModelDataError {
    return new ModelDataError(file, `tensor "${name}" ${rule}`);
  }

  unsupported({ name, file }: StoredShape & StoredName, rule: string): UnsupportedModelError {
    return new UnsupportedModelError(file, `tensor "${name}" ${rule}`);
  }

  /** @throws ModelDataError unless the tensor has this shape. */
  checkShape(stored: StoredShape & StoredName, ...shape: readonly number[]): void {
    if (stored.shape.join() === shape.join()) return;
    const { rows, columns } = this.matrix;
    const found = `[${stored.shape.join(", ")}]`;
    throw this.invalid(
      stored,
      `is ${found}, expected [${shape.join(", ")}] for a matrix [${rows}, ${columns}]`,
    );
  }
}
