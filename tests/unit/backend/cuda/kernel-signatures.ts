import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { KERNEL_FOLDER } from "../../../../src/backend/cuda/kernel-library.ts";
import {
  type KernelParameter,
  type ParameterType,
  parseKernels,
} from "../../../../src/backend/cuda/kernel-signature.ts";
import type { FakeLaunch } from "../../cuda/fake-cuda.ts";

export interface KernelSignature {
  readonly file: string;
  readonly parameters: readonly KernelParameter[];
}

export const KERNEL_FILES: readonly string[] = readdirSync(KERNEL_FOLDER)
  .filter((file) => file.endsWith(".cu"))
  .sort();

/** Every kernel's parameters, as its source declares them. */
export const SIGNATURES: ReadonlyMap<string, KernelSignature> = new Map(
  KERNEL_FILES.flatMap((file) => {
    const kernels = parseKernels(readFileSync(join(KERNEL_FOLDER, file), "utf8"));
    return [...kernels].map(([entry, parameters]) => [entry, { file, parameters }] as const);
  }),
);

/** A launch's arguments by the names that the kernel gives them. */
export function namedArguments({ entry, args }: FakeLaunch): Record<string, number> {
  const { parameters } = SIGNATURES.get(entry)!;
  return Object.fromEntries(
    parameters.map(({ name, type }, i) => [name, readArgument(args[i]!, type)] as const),
  );
}

function readArgument(bytes: Uint8Array, type: ParameterType): number {
  const view = new DataView(bytes.buffer, bytes.byteOffset, 8);
  switch (type) {
    case "hostValue":
      return Number.NaN;
    case "pointer":
      return Number(view.getBigUint64(0, true));
    case "int32":
      return view.getInt32(0, true);
    case "uint32":
      return view.getUint32(0, true);
    case "int64":
      return Number(view.getBigInt64(0, true));
    default:
      return view.getFloat32(0, true);
  }
}
