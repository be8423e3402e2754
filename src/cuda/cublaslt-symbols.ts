import type { NativeApi, SymbolTable } from "./ffi.ts";

/** The functions of libcublasLt that Octavo calls. All but the first two return a cublasStatus_t. */
export const cublasLtSymbols = {
  cublasLtGetVersion: { args: [], returns: "u64" },
  /** (status) */
  cublasLtGetStatusName: { args: ["i32"], returns: "cstring" },
  /** (cublasLtHandle_t *handle) */
  cublasLtCreate: { args: ["ptr"], returns: "i32" },
  /** (handle) */
  cublasLtDestroy: { args: ["ptr"], returns: "i32" },
  /** (cublasLtMatmulDesc_t *descriptor, compute type, scale type) */
  cublasLtMatmulDescCreate: { args: ["ptr", "i32", "i32"], returns: "i32" },
  /** (descriptor) */
  cublasLtMatmulDescDestroy: { args: ["ptr"], returns: "i32" },
  /** (descriptor, attribute, const void *value, bytes) */
  cublasLtMatmulDescSetAttribute: { args: ["ptr", "i32", "ptr", "u64"], returns: "i32" },
  /** (cublasLtMatrixLayout_t *layout, type, rows, columns, leading dimension) */
  cublasLtMatrixLayoutCreate: { args: ["ptr", "i32", "u64", "u64", "i64"], returns: "i32" },
  /** (layout) */
  cublasLtMatrixLayoutDestroy: { args: ["ptr"], returns: "i32" },
  /** (cublasLtMatmulPreference_t *preference) */
  cublasLtMatmulPreferenceCreate: { args: ["ptr"], returns: "i32" },
  /** (preference) */
  cublasLtMatmulPreferenceDestroy: { args: ["ptr"], returns: "i32" },
  /** (preference, attribute, const void *value, bytes) */
  cublasLtMatmulPreferenceSetAttribute: { args: ["ptr", "i32", "ptr", "u64"], returns: "i32" },
  /** (handle, descriptor, A, B, C, D layouts, preference, requested, heuristic results, int *returned) */
  cublasLtMatmulAlgoGetHeuristic: {
    args: ["ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "i32", "ptr", "ptr"],
    returns: "i32",
  },
  /** (handle, descriptor, A, B, C, D layouts, algorithm, heuristic result, of which the algorithm is left as it was) */
  cublasLtMatmulAlgoCheck: {
    args: ["ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr"],
    returns: "i32",
  },
  /** (handle, descriptor, alpha, A, A layout, B, B layout, beta, C, C layout, D, D layout, algorithm, workspace, bytes, stream) */
  cublasLtMatmul: {
    args: [
      "ptr",
      "ptr",
      "ptr",
      "u64",
      "ptr",
      "u64",
      "ptr",
      "ptr",
      "u64",
      "ptr",
      "u64",
      "ptr",
      "ptr",
      "u64",
      "u64",
      "ptr",
    ],
    returns: "i32",
  },
} as const satisfies SymbolTable;

export type CublasLtApi = NativeApi<typeof cublasLtSymbols>;

export const COMPUTE_32F = 68;
/** A cublasOperation_t; matrices are taken as they are unless it is set. */
export const OPERATION_TRANSPOSE = 1;
/** cudaDataType_t of the element types that matmuls use. */
export const CudaDataType = { float32: 0, float16: 2, bfloat16: 14 } as const;
export const MatmulDescAttribute = { transA: 3, epilogue: 7, biasPointer: 8 } as const;
export const PreferenceAttribute = {
  maxWorkspaceBytes: 1,
  minAlignmentA: 5,
  minAlignmentB: 6,
  minAlignmentC: 7,
  minAlignmentD: 8,
} as const;
/** A cublasLtEpilogue_t; there is no epilogue unless it is set. */
export const EPILOGUE_BIAS = 4;
