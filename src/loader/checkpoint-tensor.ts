/** An open file that tensors are read from. */
export interface CheckpointFile {
  readonly path: string;
  readonly fd: number;
}

/** A tensor as it is stored, and where. */
export interface CheckpointTensor {
  /** The format's name of the element type, e.g. `BF16` or `Q4_K`. */
  readonly dtype: string;
  readonly shape: readonly number[];
  /** Byte offsets in the file, `[begin, end)`. */
  readonly begin: number;
  readonly end: number;
  readonly file: CheckpointFile;
  /**
   * Rows of a group, e.g. of an attention head, that are stored as pairs: row i of the group's first half, then row i of its
   * second. Undefined where rows are in order.
   */
  readonly pairedRows?: number;
  /**
   * Present where the tensor's rows are parts of longer ones, of so many bytes, each from byte `start` on: two matrices whose rows
   * take turns. `begin` and `end` are those of the longer rows.
   */
  readonly within?: { readonly rowBytes: number; readonly start: number };
  /**
   * Present where the file has columns for rows: row n of the tensor [N, K] is column start + n · stride of a matrix [K, N · stride], whose
   * place `begin` and `end` are.
   */
  readonly transposed?: { readonly start: number; readonly stride: number };
}

/** A format's names for tensors and dtypes. */
export interface CheckpointFormat {
  /** The file's name of a tensor, by that of a Hugging Face checkpoint. */
  storedName(name: string): string;
  /** The dtypes that can be loaded. */
  readonly dtypes: readonly string[];
}
