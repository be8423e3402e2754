/** Assembled code; see src/backend/simd/x64/product-code.ts. */

/** A routine, by its distance from the code's beginning, with parameters at an address; see layout.ts. */
export declare function call(routine: i32, parameters: usize): void;

/** Sets a word of parameters. */
// @inline
export function set<T>(parameters: usize, word: i32, value: T): void {
  store<u32>(parameters + ((<usize>word) << 2), <u32>value);
}
