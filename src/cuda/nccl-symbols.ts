import type { NativeApi, SymbolTable } from "./ffi.ts";

/**
 * The functions of libnccl that Octavo calls, all of pointers and numbers. `ncclCommInitRank` takes the 128 bytes of a
 * ncclUniqueId by value, which `bun:ffi` cannot pass; `ncclCommInitRankScalable` takes their address. Functions that return a
 * number return a ncclResult_t.
 */
export const ncclSymbols = {
  /** (int *version): major · 10000 + minor · 100 + patch */
  ncclGetVersion: { args: ["ptr"], returns: "i32" },
  /** (result) */
  ncclGetErrorString: { args: ["i32"], returns: "cstring" },
  /** (comm or NULL): the last error of this process in words, which may be empty */
  ncclGetLastError: { args: ["ptr"], returns: "cstring" },
  /** (ncclUniqueId *id) */
  ncclGetUniqueId: { args: ["ptr"], returns: "i32" },
  /** (ncclComm_t *comm, ranks, rank, id count, const ncclUniqueId *ids, const ncclConfig_t *config or NULL) */
  ncclCommInitRankScalable: { args: ["ptr", "i32", "i32", "i32", "ptr", "ptr"], returns: "i32" },
  /** (comm): waits for its work; all ranks of a process must call it */
  ncclCommDestroy: { args: ["ptr"], returns: "i32" },
  /** (comm): ends its kernels, whatever other ranks do */
  ncclCommAbort: { args: ["ptr"], returns: "i32" },
  /** (comm, ncclResult_t *error) */
  ncclCommGetAsyncError: { args: ["ptr", "ptr"], returns: "i32" },
  /** (send address, receive address, elements, type, operation, comm, stream) */
  ncclAllReduce: { args: ["u64", "u64", "u64", "i32", "i32", "ptr", "ptr"], returns: "i32" },
  /** (send address, receive address, elements of a rank, type, comm, stream) */
  ncclAllGather: { args: ["u64", "u64", "u64", "i32", "ptr", "ptr"], returns: "i32" },
} as const satisfies SymbolTable;

export type NcclApi = NativeApi<typeof ncclSymbols>;

/** The function that every NCCL has: enough to tell that one is too old for the rest of the table. */
export const ncclVersionSymbols = {
  ncclGetVersion: ncclSymbols.ncclGetVersion,
} as const satisfies SymbolTable;

/** Bytes of a ncclUniqueId. */
export const UNIQUE_ID_BYTES = 128;

/** ncclDataType_t of what is exchanged. */
export const NcclType = { uint32: 3, float16: 6, float32: 7, bfloat16: 9 } as const;
/** A ncclRedOp_t. */
export const NCCL_SUM = 0;

export const NcclStatus = { success: 0, invalidArgument: 4, invalidUsage: 5, inProgress: 7 } as const;
