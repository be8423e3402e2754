import { InvariantError } from "../../base/errors.ts";

/** The type of a kernel's parameter. */
export type ParameterType = "pointer" | "int32" | "uint32" | "int64" | "float32" | "hostValue";

export interface KernelParameter {
  readonly name: string;
  readonly type: ParameterType;
}

/**
 * Types of values by the names that the sources use; anything with a `*` is a pointer, and a `__grid_constant__` is taken whole
 * from host memory.
 */
const SCALARS: Readonly<Record<string, ParameterType>> = {
  int: "int32",
  int32: "int32",
  uint32: "uint32",
  unsigned: "uint32",
  int64: "int64",
  "long long": "int64",
  float: "float32",
};

const COMMENT = /\/\/.*|\/\*[\s\S]*?\*\//g;
const DECLARED = /extern\s+"C"\s+__global__/g;
const DECLARATION =
  /extern\s+"C"\s+__global__\s+void\s+(?:__(?:launch_bounds|cluster_dims)__\((?:[^()]|\([^()]*\))*\)\s*)*(\w+)\s*\(([^()]*)\)/g;

/**
 * The parameters of every `extern "C" __global__` kernel of a source, by the kernel's name.
 * @throws InvariantError for a declaration that it cannot read.
 */
export function parseKernels(source: string): ReadonlyMap<string, readonly KernelParameter[]> {
  const code = source.replace(COMMENT, " ");
  const kernels = new Map<string, readonly KernelParameter[]>();
  for (const [, entry, list] of code.matchAll(DECLARATION)) kernels.set(entry!, parseList(entry!, list!));
  const declared = code.match(DECLARED)?.length ?? 0;
  if (kernels.size !== declared)
    throw new InvariantError(
      `read ${kernels.size} of ${declared} kernels: ${[...kernels.keys()].join(", ")}`,
    );
  return kernels;
}

function parseList(entry: string, list: string): KernelParameter[] {
  if (list.trim() === "") return [];
  return list.split(",").map((declaration) => {
    const [, qualified, name] = /^\s*([\s\S]*?)\b(\w+)\s*$/.exec(declaration) ?? [];
    const type = qualified?.includes("*")
      ? "pointer"
      : qualified?.includes("__grid_constant__")
        ? "hostValue"
        : SCALARS[qualified?.replace(/\bconst\b/, "").trim() ?? ""];
    if (type === undefined || name === undefined)
      throw new InvariantError(`${entry}: no known type in "${declaration.trim()}"`);
    return { name, type };
  });
}

/** A signature as messages show it, e.g. `out*, ids*, units`. */
export function showParameters(parameters: readonly KernelParameter[]): string {
  return parameters.map(({ name, type }) => (type === "pointer" ? `${name}*` : name)).join(", ");
}
