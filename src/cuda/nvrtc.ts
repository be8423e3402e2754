import { ptr } from "bun:ffi";
import { callNvrtc, checkNvrtc } from "./errors.ts";
import { OutPointer } from "./ffi.ts";
import type { NvrtcApi } from "./nvrtc-symbols.ts";

/** One translation unit, complete: NVRTC reads no files. */
export interface CompileRequest {
  /** Its name in errors, e.g. `rms_norm.cu`. */
  readonly name: string;
  readonly source: string;
  /** Contents of the headers by the name they are included under. */
  readonly headers: Readonly<Record<string, string>>;
  /** Compiler options, among them `--gpu-architecture=sm_XX`. */
  readonly options: readonly string[];
}

export interface CompileResult {
  readonly cubin: Uint8Array<ArrayBuffer>;
  /** Warnings; usually empty. */
  readonly log: string;
}

/** Compiles CUDA C++ to cubins. */
export interface KernelCompiler {
  /** Part of every cache key, e.g. `13.2`. */
  readonly version: string;
  /** Throws `NvrtcError` with the log when the source is wrong. */
  compile(request: CompileRequest): CompileResult;
}

/** NVRTC. It holds nothing between compilations. */
export class Nvrtc implements KernelCompiler {
  readonly version: string;

  constructor(private readonly api: NvrtcApi) {
    const major = new Int32Array(1);
    const minor = new Int32Array(1);
    callNvrtc(api, "nvrtcVersion", [major, minor]);
    this.version = `${major[0]}.${minor[0]}`;
  }

  /** Architectures it compiles for, as major · 10 + minor. */
  get architectures(): number[] {
    const { api } = this;
    const count = new Int32Array(1);
    callNvrtc(api, "nvrtcGetNumSupportedArchs", [count]);
    const architectures = new Int32Array(count[0]!);
    callNvrtc(api, "nvrtcGetSupportedArchs", [architectures]);
    return [...architectures];
  }

  compile(request: CompileRequest): CompileResult {
    const { api } = this;
    const { name } = request;
    const headers = new CStrings(Object.values(request.headers));
    const headerNames = new CStrings(Object.keys(request.headers));
    const options = new CStrings(request.options);
    const out = new OutPointer();
    const source = cString(request.source);
    callNvrtc(
      api,
      "nvrtcCreateProgram",
      [out.array, source, name, headers.length, headers.pointers, headerNames.pointers],
      name,
    );
    const program = out.value;
    try {
      const status = api.nvrtcCompileProgram(program, options.length, options.pointers);
      const log = this.#log(program);
      checkNvrtc(api, "nvrtcCompileProgram", status, name, log);
      const size = new OutPointer();
      callNvrtc(api, "nvrtcGetCUBINSize", [program, size.array], name);
      const cubin = new Uint8Array(size.value);
      callNvrtc(api, "nvrtcGetCUBIN", [program, cubin], name);
      return { cubin, log };
    } finally {
      api.nvrtcDestroyProgram(out.array);
    }
  }

  #log(program: number): string {
    const size = new OutPointer();
    if (this.api.nvrtcGetProgramLogSize(program, size.array) !== 0 || size.value <= 1) return "";
    const log = new Uint8Array(size.value);
    if (this.api.nvrtcGetProgramLog(program, log) !== 0) return "";
    // The assembler's part of it ends with a zero of its own.
    return new TextDecoder().decode(log).replaceAll("\0", "").trimEnd();
  }
}

/** A `const char *[]` with its strings, valid for as long as this object is reachable. */
class CStrings {
  readonly length: number;
  readonly pointers: BigUint64Array;
  readonly strings: Uint8Array[];

  constructor(values: readonly string[]) {
    this.strings = values.map(cString);
    this.length = values.length;
    // One element at least: an empty array has no address.
    this.pointers = new BigUint64Array(Math.max(1, values.length));
    for (const [i, string] of this.strings.entries()) this.pointers[i] = BigInt(ptr(string));
  }
}

function cString(text: string): Uint8Array {
  return Buffer.from(`${text}\0`);
}
