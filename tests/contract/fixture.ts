import type { Backend } from "../../src/backend/backend.ts";
import { Tensor } from "../../src/backend/tensor.ts";
import { tensorsOf, type Weight } from "../../src/backend/weight.ts";
import { type DType, dtypeSize, type FloatDType, type KvDType, narrow, widen } from "../../src/base/dtype.ts";
import { FLOAT8_VALUES, toFloat8 } from "../../src/base/float8.ts";
import { Random } from "./random.ts";

/** Bytes of guard on either side of every tensor, and what they hold. */
const GUARD_BYTES = 256;
const GUARD = 0xa5;
/** What outputs and memory that must not be read hold: NaN in every float dtype, −1 as int32. */
export const POISON = 0xff;

/** A float tensor and the values that it holds after rounding to its dtype. */
export interface Uploaded {
  readonly tensor: Tensor;
  readonly values: Float32Array;
}

/**
 * One case's memory on a backend: seeded inputs, poisoned outputs, guards around both. `checkUntouched` fails when an
 * op wrote to an input or outside of a tensor.
 */
export class Fixture {
  random: Random;
  readonly #tensors: Tensor[] = [];
  readonly #inputs = new Map<Tensor, Uint8Array>();

  /** @param knownNormals shared by the cases of a suite: see `noKnownNormals` */
  constructor(
    readonly backend: Backend,
    private readonly knownNormals?: Float32Array,
  ) {
    this.random = new Random(42, knownNormals);
  }

  /** Draws the same numbers again. */
  restart(): void {
    this.random = new Random(42, this.knownNormals);
  }

  get dtype(): FloatDType {
    return this.backend.activationDtype;
  }

  /** A float input that no op may change. */
  input(values: Float32Array, shape: readonly number[], dtype: FloatDType = this.dtype): Uploaded {
    const bytes = narrow(values, dtype);
    const uploaded = this.#upload(bytes, shape, dtype);
    this.#inputs.set(uploaded.tensor, bytes);
    return uploaded;
  }

  /** A float tensor that ops may change. */
  state(values: Float32Array, shape: readonly number[], dtype: KvDType = this.dtype): Uploaded {
    return this.#upload(dtype === "float8_e4m3" ? codesOf(values) : narrow(values, dtype), shape, dtype);
  }

  #upload(bytes: Uint8Array, shape: readonly number[], dtype: KvDType): Uploaded {
    const tensor = this.#place(dtype, shape);
    this.backend.upload(tensor, bytes);
    return { tensor, values: floatsOf(bytes, dtype) };
  }

  /** Shorthand: an input of normally distributed values. */
  normals(shape: readonly number[], scale = 1, mean = 0): Uploaded {
    const size = shape.reduce((product, extent) => product * extent, 1);
    return this.input(this.random.normals(size, scale, mean), shape);
  }

  /** An int32 input that no op may change. */
  ints(values: readonly number[] | Int32Array, shape: readonly number[] = [values.length]): Tensor {
    const tensor = this.stateOf("int32", Int32Array.from(values), shape);
    this.#inputs.set(tensor, new Uint8Array(Int32Array.from(values).buffer));
    return tensor;
  }

  /** An input of 1-byte elements that no op may change. */
  bytes(dtype: "uint8" | "float8_e4m3", values: Uint8Array, shape: readonly number[]): Tensor {
    const tensor = this.#place(dtype, shape);
    this.backend.upload(tensor, values);
    this.#inputs.set(tensor, values);
    return tensor;
  }

  /** The weight to multiply by, once the backend has ordered its memory; from then on no op may change that. */
  prepared(weight: Weight): Weight {
    const result = this.backend.prepareWeight?.(weight) ?? weight;
    for (const tensor of tensorsOf(result))
      if (this.#inputs.has(tensor)) this.#inputs.set(tensor, this.backend.download(tensor));
    return result;
  }

  /** A tensor of 4-byte elements that ops may change. */
  stateOf(dtype: DType, values: Int32Array | Uint32Array, shape: readonly number[]): Tensor {
    const tensor = this.#place(dtype, shape);
    this.backend.upload(tensor, values);
    return tensor;
  }

  /** An output: every byte is poison. */
  output(dtype: DType, shape: readonly number[]): Tensor {
    const tensor = this.#place(dtype, shape);
    this.backend.fill(tensor, POISON);
    return tensor;
  }

  /** A poisoned tensor in shared memory, and its words. */
  shared(shape: readonly number[]): { readonly tensor: Tensor; readonly words: Int32Array } {
    const tensor = this.#place("int32", shape, (byteLength) => this.backend.allocateShared(byteLength));
    const words = new Int32Array(tensor.buffer.host!, tensor.byteOffset, tensor.size).fill(-1);
    return { tensor, words };
  }

  readFloats(tensor: Tensor): Float32Array {
    return floatsOf(this.backend.download(tensor), tensor.dtype as KvDType);
  }

  readInts(tensor: Tensor): Int32Array {
    return new Int32Array(this.backend.download(tensor).buffer);
  }

  readWords(tensor: Tensor): Uint32Array {
    return new Uint32Array(this.backend.download(tensor).buffer);
  }

  /** Throws when a guard or an input has changed. */
  checkUntouched(): void {
    for (const tensor of this.#tensors) {
      const end = GUARD_BYTES + tensor.byteLength;
      for (const [from, to] of [
        [0, GUARD_BYTES],
        [end, tensor.buffer.byteLength],
      ] as const) {
        // In whole elements of 16 bits: an odd number of bytes is guarded by one more.
        const start = from - (from % 2);
        const guard = this.backend.download(new Tensor(tensor.buffer, "float16", [(to - start) / 2], start));
        const broken = guard.subarray(from - start).findIndex((byte) => byte !== GUARD);
        if (broken >= 0)
          throw new Error(`byte ${from + broken - GUARD_BYTES} outside of ${tensor} was written`);
      }
      const before = this.#inputs.get(tensor);
      if (before !== undefined && Buffer.compare(before, this.backend.download(tensor)) !== 0) {
        throw new Error(`input ${tensor} was written`);
      }
    }
  }

  dispose(): void {
    for (const { buffer } of this.#tensors) buffer.dispose();
  }

  #place(
    dtype: DType,
    shape: readonly number[],
    allocate = (byteLength: number) => this.backend.allocate(byteLength),
  ): Tensor {
    const bytes = shape.reduce((product, extent) => product * extent, dtypeSize(dtype));
    const total = Math.ceil(bytes / 2) * 2 + 2 * GUARD_BYTES;
    const tensor = new Tensor(allocate(total), dtype, shape, GUARD_BYTES);
    this.backend.fill(new Tensor(tensor.buffer, "float16", [total / 2]), GUARD);
    // The host fills shared memory next.
    if (tensor.buffer.host !== undefined) this.backend.synchronize();
    this.#tensors.push(tensor);
    return tensor;
  }
}

function codesOf(values: Float32Array): Uint8Array {
  const codes = new Uint8Array(values.length);
  for (let i = 0; i < codes.length; i++) codes[i] = toFloat8(values[i]!);
  return codes;
}

function floatsOf(bytes: Uint8Array, dtype: KvDType): Float32Array {
  const values = new Float32Array(bytes.length / dtypeSize(dtype));
  if (dtype === "float8_e4m3") for (let i = 0; i < values.length; i++) values[i] = FLOAT8_VALUES[bytes[i]!]!;
  else widen(bytes, dtype, values);
  return values;
}
