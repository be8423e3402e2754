import type { Backend } from "../../src/backend/backend.ts";
import { Tensor } from "../../src/backend/tensor.ts";
import type { DType } from "../../src/base/dtype.ts";
import { InvariantError } from "../../src/base/errors.ts";
import type { Op } from "./backend.contract.ts";

/** Where an operand lies in its memory, and how much of that there is: room for views that are shifted or too large. */
const OPERAND_OFFSET = 256;
const OPERAND_BYTES = 2 ** 18;

const DTYPES = ["float32", "bfloat16", "float16", "int32", "uint32"] as const satisfies DType[];

export type Extents = readonly [dtype: DType, ...shape: number[]];
export type Operands = Readonly<Record<string, Tensor>>;
export type Scalars = Readonly<Record<string, number>>;

/** A call of an op that is right, and every way to make it wrong that the op must refuse. */
export interface Refusals {
  readonly op: Op;
  /** Tells several tables of one op apart. */
  readonly title?: string;
  readonly operands: Readonly<Record<string, Extents>>;
  readonly scalars?: Scalars;
  /** What int32 operands hold, where zeros are not right. */
  readonly contents?: Readonly<Record<string, readonly number[]>>;
  /** Operands that the op takes and does not look at. */
  readonly unchecked?: readonly string[];
  /** Dimensions of operands that may have any extent. Every other extent, each rank and dtype is refused when changed. */
  readonly free?: Readonly<Record<string, readonly number[]>>;
  /** Dtypes that an operand may have besides its own. */
  readonly dtypes?: Readonly<Record<string, readonly DType[]>>;
  /** What a written operand must not lie upon. */
  readonly apart?: Readonly<Record<string, readonly string[]>>;
  /** Changes of scalars, or of operands' extents, each refused. */
  readonly wrong?: readonly Readonly<Record<string, number | Extents>>[];
  readonly run: (backend: Backend, operands: Operands, scalars: Scalars) => void;
}

interface Calls {
  /** Succeeds. */
  readonly right: () => void;
  /** Each of them is to be refused. */
  readonly wrong: readonly { readonly what: string; readonly call: () => void }[];
}

/** The calls of a table. `place` gives a tensor of these words. */
export function callsOf(
  backend: Backend,
  { operands, scalars = {}, contents = {}, run, ...refused }: Refusals,
  place: (words: Int32Array) => Tensor,
): Calls {
  const right = Object.fromEntries(
    Object.entries(operands).map(([name, [dtype, ...shape]]) => {
      const words = new Int32Array(OPERAND_BYTES / 4);
      words.set(contents[name] ?? [], OPERAND_OFFSET / 4);
      const { buffer, byteOffset } = place(words);
      return [name, new Tensor(buffer, dtype, shape, byteOffset + OPERAND_OFFSET)] as const;
    }),
  );
  const view = (tensor: Tensor, dtype: DType, shape: readonly number[], shift = 0) =>
    new Tensor(tensor.buffer, dtype, shape, tensor.byteOffset + shift);
  const wrong: Calls["wrong"][number][] = [];
  const add = (what: string, changed: Operands, changedScalars: Scalars = {}) => {
    const call = () => run(backend, { ...right, ...changed }, { ...scalars, ...changedScalars });
    wrong.push({ what, call });
  };

  for (const [name, tensor] of Object.entries(right)) {
    if (refused.unchecked?.includes(name)) continue;
    const { shape } = tensor;
    for (const dtype of DTYPES) {
      if (dtype === tensor.dtype || refused.dtypes?.[name]?.includes(dtype)) continue;
      add(`${name} of ${dtype}`, { [name]: view(tensor, dtype, shape) });
    }
    const free = refused.free?.[name] ?? [];
    for (const [i, extent] of [...shape, 0].entries()) {
      if (free.includes(i)) continue;
      const larger = [...shape];
      larger[i] = extent + 1;
      add(`${name} [${larger}]`, { [name]: view(tensor, tensor.dtype, larger) });
    }
  }
  for (const [written, reads] of Object.entries(refused.apart ?? {})) {
    const { dtype, shape } = right[written]!;
    for (const read of reads) {
      for (const shift of [-4, 4])
        add(`${written} upon ${read}`, { [written]: view(right[read]!, dtype, shape, shift) });
    }
  }
  for (const change of refused.wrong ?? []) {
    const tensors: Record<string, Tensor> = {};
    const numbers: Record<string, number> = {};
    for (const [name, value] of Object.entries(change)) {
      if (typeof value === "number") {
        numbers[name] = value;
      } else {
        const [dtype, ...shape] = value;
        tensors[name] = view(right[name]!, dtype, shape);
      }
    }
    add(JSON.stringify(change), tensors, numbers);
  }
  return { right: () => run(backend, right, scalars), wrong };
}

/** Which of the calls an op did not refuse with an `InvariantError` in its name. */
export function acceptedOf(op: Op, calls: Calls["wrong"]): string[] {
  return calls
    .filter(({ call }) => {
      try {
        call();
        return true;
      } catch (error) {
        if (error instanceof InvariantError && error.message.startsWith(`${op}: `)) return false;
        throw error;
      }
    })
    .map(({ what }) => what);
}
