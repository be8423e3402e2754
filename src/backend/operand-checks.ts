import type { DType, FloatDType } from "../base/dtype.ts";
import { InvariantError } from "../base/errors.ts";
import type { Tensor } from "./tensor.ts";
import {
  factorsOf,
  MXFP4_GROUP,
  SUPERBLOCK,
  type SuperblockWeight,
  tensorsOf,
  type Weight,
} from "./weight.ts";

/** What the checks of ops are made of. Each throws `InvariantError` that names the op and the operand; messages are built only then. */

/** An extent: a number must match exactly; a letter stands for any extent and is shown in the message. */
export type Extent = number | string;

export function check(
  op: string,
  name: string,
  tensor: Tensor,
  dtypes: DType | readonly DType[],
  ...shape: Extent[]
) {
  const rightDtype = typeof dtypes === "string" ? tensor.dtype === dtypes : dtypes.includes(tensor.dtype);
  if (rightDtype && hasShape(tensor, shape)) return;
  const dtype = typeof dtypes === "string" ? dtypes : dtypes.join(" or ");
  refuse(op, `${name} is ${tensor}, expected ${dtype}[${shape.join(", ")}]`);
}

function hasShape(tensor: Tensor, shape: readonly Extent[]): boolean {
  if (tensor.shape.length !== shape.length) return false;
  for (let i = 0; i < shape.length; i++) {
    if (typeof shape[i] === "number" && tensor.shape[i] !== shape[i]) return false;
  }
  return true;
}

export function refuse(op: string, message: string): never {
  throw new InvariantError(`${op}: ${message}`);
}

/** Fails when `written` shares memory with one of `read`. */
export function disjoint(
  op: string,
  written: Tensor,
  read: Readonly<Record<string, Tensor | undefined>>,
  name = "out",
) {
  for (const readName in read) {
    const tensor = read[readName];
    if (tensor !== undefined && overlap(written, tensor)) refuse(op, `${name} overlaps ${readName}`);
  }
}

/** Buffers have memory of their own. */
function overlap(a: Tensor, b: Tensor): boolean {
  if (a.buffer !== b.buffer) return false;
  return a.byteOffset < b.byteOffset + b.byteLength && b.byteOffset < a.byteOffset + a.byteLength;
}

/** In place on all of `input`, or clear of it. */
export function sameOrDisjoint(op: string, written: Tensor, input: Tensor, name: string) {
  const same = written.buffer === input.buffer && written.byteOffset === input.byteOffset;
  if (!same && overlap(written, input)) refuse(op, `out overlaps ${name}`);
}

/**
 * A weight [n, k] as `Weight` describes it.
 * @param dtypes of dense ones
 */
export function checkWeight(
  op: string,
  name: string,
  weight: Weight,
  dtypes: readonly FloatDType[],
  n: number,
  k: number,
) {
  const { shape, data } = weight;
  if (shape[0] !== n || shape[1] !== k) refuse(op, `${name} is [${shape}], expected [${n}, ${k}]`);
  if (weight.format === "dense") {
    check(op, name, data, dtypes, n, k);
    return;
  }
  if (weight.format === "fp8") {
    const { blockRows, blockColumns } = weight;
    check(op, `${name}.data`, data, "float8_e4m3", n, k);
    check(op, `${name}.scales`, weight.scales, "float32", blocks(n, blockRows), blocks(k, blockColumns));
    return;
  }
  if (weight.format === "mxfp4") {
    if (k % MXFP4_GROUP !== 0) refuse(op, `${name} has ${k} columns`);
    check(op, `${name}.data`, data, "uint8", n, k / 2);
    check(op, `${name}.scales`, weight.scales, "uint8", n, k / MXFP4_GROUP);
    return;
  }
  if (weight.format === "superblocks") {
    checkSuperblocks(op, name, weight);
    return;
  }
  const { bits, groupSize, scales, zeros, permutation } = weight;
  if (k % groupSize !== 0 || groupSize % 16 !== 0) refuse(op, `${name} has groups of ${groupSize} of ${k}`);
  check(op, `${name}.data`, data, "uint8", n, (k * bits) / 8);
  check(op, `${name}.scales`, scales, ["float16", "bfloat16"], n, k / groupSize);
  if (zeros !== undefined) check(op, `${name}.zeros`, zeros, "uint8", n, k / groupSize);
  if (permutation !== undefined) check(op, `${name}.permutation`, permutation, "int32", k);
}

function checkSuperblocks(op: string, name: string, weight: SuperblockWeight) {
  const { bits, groupSize, minima, data, steps, units } = weight;
  const [n, k] = weight.shape;
  if (k % SUPERBLOCK !== 0) refuse(op, `${name} has ${k} columns`);
  const isKnown = bits === 8 ? minima || groupSize === 16 : minima && groupSize === 32;
  if (!isKnown) {
    const extras = minima ? "" : " without minima";
    refuse(op, `${name} has codes of ${bits} bits in groups of ${groupSize}${extras}`);
  }
  check(op, `${name}.data`, data, "uint8", n, (k * bits) / 8);
  check(op, `${name}.steps`, steps, "uint8", n, k / groupSize, factorsOf(weight));
  check(op, `${name}.units`, units, "float16", n, k / SUPERBLOCK, factorsOf(weight));
}

function blocks(extent: number, block: number): number {
  return Math.ceil(extent / block);
}

export function disjointFromWeight(op: string, written: Tensor, weight: Weight, name = "out") {
  if (weight.format === "dense") disjoint(op, written, { weight: weight.data }, name);
  else for (const tensor of tensorsOf(weight)) disjoint(op, written, { weight: tensor }, name);
}
