import { expect } from "bun:test";
import type { ParameterSource, ParameterSpec } from "../../../src/base/parameter-spec.ts";
import { readFully } from "../../../src/base/read-fully.ts";
import type { SafetensorsFile } from "../../../src/loader/safetensors.ts";

export interface TensorData {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly data: ArrayBufferView;
}

/** A file of the given header text and data section; `length` overrides the header's length field. */
export function rawSafetensors(
  header: string | Uint8Array,
  data: number | Uint8Array = 0,
  length?: bigint,
): Uint8Array {
  const text = Buffer.from(header);
  const prefix = Buffer.alloc(8);
  prefix.writeBigUInt64LE(length ?? BigInt(text.length));
  return Buffer.concat([prefix, text, typeof data === "number" ? Buffer.alloc(data) : data]);
}

/** A well-formed file of these tensors. */
export function safetensors(tensors: Readonly<Record<string, TensorData>>): Uint8Array {
  const header: Record<string, unknown> = { __metadata__: { format: "pt" } };
  const parts: Uint8Array[] = [];
  let at = 0;
  for (const [name, { dtype, shape, data }] of Object.entries(tensors)) {
    header[name] = { dtype, shape, data_offsets: [at, at + data.byteLength] };
    parts.push(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
    at += data.byteLength;
  }
  return rawSafetensors(JSON.stringify(header), Buffer.concat(parts));
}

/** Fills `target`, which must have the tensor's size, with its bytes. */
export function readTensor(file: SafetensorsFile, name: string, target: ArrayBufferView<ArrayBuffer>): void {
  const { begin, end } = file.tensors.get(name)!;
  expect(target.byteLength).toBe(end - begin);
  readFully(file.path, file.fd, new Uint8Array(target.buffer), begin);
}

export function f32(shape: readonly number[], values?: readonly number[]): TensorData {
  const size = shape.reduce((product, extent) => product * extent, 1);
  return {
    dtype: "F32",
    shape,
    data: Float32Array.from(values ?? Array.from({ length: size }, (_, i) => i)),
  };
}

export function spec(name: string, shape: number[], ...sources: ParameterSource[]): ParameterSpec {
  return { name, shape, sources, dummy: "normal" };
}
