/** The memory that weights take, for people. */
export interface WeightSummary {
  /** Forms of the matrices, those of the most weights first, e.g. `int4 in groups of 128, bfloat16`. */
  readonly format: string;
  /** Of all parameters that a rank holds. */
  readonly bytes: number;
}
