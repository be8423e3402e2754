/** The tensors that a checkpoint holds, before anything is loaded of it. */
export interface TensorDirectory {
  find(name: string): StoredShape | undefined;
  /** A small tensor of integers of 32 or 64 bits, or of packed ones, as 32-bit words; it must exist. */
  words(name: string): Int32Array;
  /** True if every byte of a small tensor is 0; it must exist. */
  isZero(name: string): boolean;
}

/** A tensor's element type, by the format's name, its shape, and the file that it is in. */
export interface StoredShape {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly file: string;
}
