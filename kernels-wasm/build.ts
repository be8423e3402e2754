#!/usr/bin/env bun
/** Compiles the kernels: `bun run build:wasm`. A test holds kernels.wasm against what this makes. */
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { main } from "assemblyscript/asc";
import { MODULE_DATA } from "./layout.ts";

const FLAGS = [
  ...["--optimizeLevel", "3", "--noAssert", "--runtime", "stub"],
  ...["--enable", "simd", "--enable", "relaxed-simd", "--enable", "threads"],
  ...[
    "--importMemory",
    "--noExportMemory",
    "--sharedMemory",
    "--initialMemory",
    "1",
    "--maximumMemory",
    "65536",
  ],
  ...["--memoryBase", `${MODULE_DATA}`],
];

/** The module that the sources make. @throws Error with the compiler's messages */
export async function buildKernels(): Promise<Uint8Array> {
  let module: Uint8Array | undefined;
  const { error, stderr } = await main(
    ["index.ts", "--outFile", "kernels.wasm", ...FLAGS, "--baseDir", import.meta.dir],
    {
      readFile: source,
      writeFile: (_, contents) => {
        module = contents as Uint8Array;
      },
    },
  );
  if (error !== null || module === undefined) throw new Error(`${error?.message}\n${stderr}`);
  return module;
}

/** A source as the compiler shall have it: its decorators, which are not TypeScript, are comments. `null` where there is none. */
function source(name: string, folder: string): string | null {
  const path = join(folder, name);
  return existsSync(path) ? readFileSync(path, "utf8").replaceAll(/^\/\/ @inline$/gm, "@inline") : null;
}

if (import.meta.main) writeFileSync(join(import.meta.dir, "kernels.wasm"), await buildKernels());
