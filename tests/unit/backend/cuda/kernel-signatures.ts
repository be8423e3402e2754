import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { KERNEL_FOLDER } from "../../../../src/backend/cuda/kernel-library.ts";
import type { FakeLaunch } from "../../cuda/fake-cuda.ts";

/** The letter of `Kernel` signatures that each C type needs; pointers are `p`. */
const LETTERS: Readonly<Record<string, string>> = {
  int: "i",
  int32: "i",
  uint32: "u",
  int64: "l",
  float: "f",
};

export interface KernelParameter {
  readonly name: string;
  readonly letter: string;
}

export interface KernelSignature {
  readonly file: string;
  readonly parameters: readonly KernelParameter[];
}

export const KERNEL_FILES: readonly string[] = readdirSync(KERNEL_FOLDER)
  .filter((file) => file.endsWith(".cu"))
  .sort();

/** Every kernel's parameters, as its source declares them. */
export const SIGNATURES: ReadonlyMap<string, KernelSignature> = new Map(KERNEL_FILES.flatMap(parse));

function parse(file: string): [entry: string, KernelSignature][] {
  const source = readFileSync(join(KERNEL_FOLDER, file), "utf8").replace(/\/\/.*/g, "");
  const declaration =
    /extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\(([^)]*)\)/g;
  return [...source.matchAll(declaration)].map(([, entry, list]) => [
    entry!,
    { file, parameters: list!.split(",").map((declared) => parameter(declared.trim(), entry!)) },
  ]);
}

function parameter(declared: string, entry: string): KernelParameter {
  const [, type, name] = /^(.*?)(\w+)$/s.exec(declared)!;
  const letter = type!.includes("*") ? "p" : LETTERS[type!.trim()];
  if (letter === undefined) throw new Error(`${entry}: no letter for "${declared}"`);
  return { name: name!, letter };
}

/** A launch's arguments by the names that the kernel gives them. */
export function namedArguments({ entry, args }: FakeLaunch): Record<string, number> {
  const { parameters } = SIGNATURES.get(entry)!;
  return Object.fromEntries(
    parameters.map(({ name, letter }, i) => [name, readArgument(args[i]!, letter)] as const),
  );
}

function readArgument(bytes: Uint8Array, letter: string): number {
  const view = new DataView(bytes.buffer, bytes.byteOffset, 8);
  switch (letter) {
    case "p":
      return Number(view.getBigUint64(0, true));
    case "i":
      return view.getInt32(0, true);
    case "u":
      return view.getUint32(0, true);
    case "l":
      return Number(view.getBigInt64(0, true));
    default:
      return view.getFloat32(0, true);
  }
}
