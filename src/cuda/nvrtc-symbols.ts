import type { NativeApi, SymbolTable } from "./ffi.ts";

/** The functions of libnvrtc that Octavo calls. All but the first return an nvrtcResult. */
export const nvrtcSymbols = {
  /** (result) */
  nvrtcGetErrorString: { args: ["i32"], returns: "cstring" },
  /** (int *major, int *minor) */
  nvrtcVersion: { args: ["ptr", "ptr"], returns: "i32" },
  /** (int *count) */
  nvrtcGetNumSupportedArchs: { args: ["ptr"], returns: "i32" },
  /** (int *architectures) */
  nvrtcGetSupportedArchs: { args: ["ptr"], returns: "i32" },
  /** (nvrtcProgram *program, source, name, header count, const char **headers, const char **header names) */
  nvrtcCreateProgram: { args: ["ptr", "ptr", "cstring", "i32", "ptr", "ptr"], returns: "i32" },
  /** (nvrtcProgram *program) */
  nvrtcDestroyProgram: { args: ["ptr"], returns: "i32" },
  /** (program, option count, const char **options) */
  nvrtcCompileProgram: { args: ["ptr", "i32", "ptr"], returns: "i32" },
  /** (program, size_t *bytes), NUL included */
  nvrtcGetProgramLogSize: { args: ["ptr", "ptr"], returns: "i32" },
  /** (program, char *log) */
  nvrtcGetProgramLog: { args: ["ptr", "ptr"], returns: "i32" },
  /** (program, size_t *bytes) */
  nvrtcGetCUBINSize: { args: ["ptr", "ptr"], returns: "i32" },
  /** (program, char *cubin) */
  nvrtcGetCUBIN: { args: ["ptr", "ptr"], returns: "i32" },
} as const satisfies SymbolTable;

export type NvrtcApi = NativeApi<typeof nvrtcSymbols>;
