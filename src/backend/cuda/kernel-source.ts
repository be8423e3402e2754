import { existsSync, readFileSync } from "node:fs";
import { basename, join } from "node:path";
import type { CompileRequest } from "../../cuda/nvrtc.ts";

/** Macros and their values, `-DNAME=value` to the compiler. */
export type Macros = Readonly<Record<string, string | number>>;

/** A `.cu` file with its macros. */
export interface KernelUnit {
  /** Path below the source folder, e.g. `norm.cu`. */
  readonly file: string;
  /** Constants that the file shares with its wrapper, the same in all of its units. */
  readonly constants?: Macros;
  /** Macros that specialise this unit. */
  readonly defines?: Macros;
}

const INCLUDE = /^[ \t]*#[ \t]*include[ \t]*"([^"\n]+)"/gm;

/**
 * A unit with everything it includes, ready to compile. `#include "x.cuh"` is looked for in `include/` and in the
 * source folder itself; what is in neither is left for the compiler to complain of.
 */
export function readKernelUnit(
  unit: KernelUnit,
  sourceFolder: string,
  options: readonly string[],
): CompileRequest {
  const source = readFileSync(join(sourceFolder, unit.file), "utf8");
  const headers: Record<string, string> = {};
  const pending = [source];
  for (let text = pending.pop(); text !== undefined; text = pending.pop()) {
    for (const [, name] of text.matchAll(INCLUDE)) {
      if (name === undefined || name in headers) continue;
      const path = [join(sourceFolder, "include", name), join(sourceFolder, name)].find(existsSync);
      if (path === undefined) continue;
      headers[name] = readFileSync(path, "utf8");
      pending.push(headers[name]);
    }
  }
  const macros = Object.entries({ ...unit.constants, ...unit.defines });
  const defines = macros.map(([macro, value]) => `-D${macro}=${value}`);
  return { name: basename(unit.file), source, headers, options: [...options, ...defines] };
}

/** Names one unit with the macros that specialise it, whatever their order. */
export function unitName({ file, defines = {} }: KernelUnit): string {
  const macros = Object.keys(defines)
    .sort()
    .map((macro) => `${macro}=${defines[macro]}`);
  return macros.length === 0 ? file : `${file} (${macros.join(", ")})`;
}

/** Tells units apart by all of their macros, constants included. */
export function unitKey({ file, constants, defines }: KernelUnit): string {
  return unitName({ file, defines: { ...constants, ...defines } });
}

/** Hash of all that a compilation's output depends on, fields tagged with their lengths. */
export function compileKey(request: CompileRequest, compilerVersion: string): string {
  const hasher = new Bun.CryptoHasher("sha256");
  const add = (field: string, value: string) =>
    hasher.update(`${field}:${Buffer.byteLength(value)}:${value}`);
  add("nvrtc", compilerVersion);
  for (const option of request.options) add("option", option);
  for (const name of Object.keys(request.headers).sort()) {
    add("header", name);
    add("text", request.headers[name]!);
  }
  add("source", request.source);
  return hasher.digest("hex");
}
