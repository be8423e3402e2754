import * as layout from "../../../../kernels-wasm/layout.ts";
import {
  type Assembler,
  Label,
  R8,
  R9,
  R10,
  R11,
  R12,
  R13,
  R14,
  R15,
  RAX,
  RBP,
  RBX,
  RCX,
  RDI,
  RDX,
  RSI,
  type Vector,
  ymm,
} from "./assembler.ts";
import type { Isa } from "./forms.ts";
import { address, parameter } from "./product-routines.ts";

const FLOAT_BYTES = 4;
/** Vectors of a head that values are summed in at once: the most of these that are left. */
const CHUNKS = [8, 4, 2, 1] as const;

/**
 * Dot products of a query and keys, eight at a time, in lanes that are then added in one order. The keys' addresses are a list; what of
 * the last eight is too much is computed all the same.
 */
export function emitDots(asm: Assembler, isa: Isa): void {
  // The parameters are not needed once keys are loaded.
  const keys = [RAX, RBX, RCX, RDX, RBP, R14, R15, RDI];
  const [query, at, list, out, count, bytes] = [R8, R9, R10, R11, R12, R13];
  const sums = keys.map((_, i) => isa.vector(i));
  const [input, other] = [isa.vector(8), ymm(9)];
  address(asm, query, layout.DOTS_QUERY);
  address(asm, list, layout.DOTS_KEYS);
  address(asm, out, layout.DOTS_OUT);
  parameter(asm, count, layout.DOTS_COUNT);
  parameter(asm, bytes, layout.DOTS_BYTES);

  const nextKeys = asm.here();
  for (const [i, key] of keys.entries()) {
    asm.load32(key, { base: list, offset: 4 * i });
    asm.add(key, RSI);
  }
  for (const sum of sums) asm.vpxor(sum, sum, sum);
  asm.movImmediate(at, 0);
  const nextStep = asm.here();
  asm.vmovups(input, { base: query, index: at });
  for (const [i, key] of keys.entries()) asm.vfmadd231ps(sums[i]!, input, { base: key, index: at });
  asm.addImmediate(at, FLOAT_BYTES * isa.lanes);
  asm.cmp(at, bytes);
  asm.jumpIf("below", nextStep);
  const halves = sums.map((_, i) => ymm(i));
  if (isa.lanes === 16) {
    for (const [i, sum] of sums.entries()) {
      asm.vextractf64x4(other, sum);
      asm.vaddps(halves[i]!, halves[i]!, other);
    }
  }
  asm.vmovupsStore({ base: out }, addLanes(asm, halves));
  asm.addImmediate(list, 4 * keys.length);
  asm.addImmediate(out, FLOAT_BYTES * keys.length);
  asm.subImmediate(count, keys.length);
  asm.jumpIf("notEqual", nextKeys);
}

/** The sums of the lanes of eight vectors of 256 bits, whose registers are used up. */
function addLanes(asm: Assembler, vectors: readonly Vector[]): Vector {
  for (const step of [1, 2]) {
    for (let i = 0; i < 8; i += 2 * step) asm.vhaddps(vectors[i]!, vectors[i]!, vectors[i + step]!);
  }
  const [first, lower, upper, second] = [vectors[0]!, vectors[1]!, vectors[2]!, vectors[4]!];
  asm.vperm2f128(lower, first, second, 0, 2);
  asm.vperm2f128(upper, first, second, 1, 3);
  asm.vaddps(lower, lower, upper);
  return lower;
}

/** sums[D] += weights · values, in their order; the values' addresses are a list. */
export function emitWeighted(asm: Assembler, isa: Isa): void {
  const [i, value, next, from] = [RAX, RBX, RCX, R13];
  const [list, weights, count, bytes, sums] = [R8, R9, R10, R11, R12];
  const weight = isa.vector(CHUNKS[0]);
  const vectorBytes = FLOAT_BYTES * isa.lanes;
  address(asm, list, layout.WEIGHTED_VALUES);
  address(asm, weights, layout.WEIGHTED_WEIGHTS);
  address(asm, sums, layout.WEIGHTED_SUMS);
  parameter(asm, count, layout.WEIGHTED_COUNT);
  parameter(asm, bytes, layout.WEIGHTED_BYTES);
  asm.movImmediate(from, 0);

  const nextChunk = asm.here();
  for (const chunk of CHUNKS) {
    const smaller = new Label();
    const parts = Array.from({ length: chunk }, (_, j) => ({ sum: isa.vector(j), offset: j * vectorBytes }));
    asm.lea(next, { base: from, offset: chunk * vectorBytes });
    asm.cmp(next, bytes);
    asm.jumpIf("above", smaller);
    for (const { sum, offset } of parts) asm.vmovups(sum, { base: sums, index: from, offset });
    asm.movImmediate(i, 0);
    const nextValue = asm.here();
    asm.load32(value, { base: list, index: i, scale: 4 });
    asm.add(value, RSI);
    asm.vbroadcastss(weight, { base: weights, index: i, scale: 4 });
    for (const { sum, offset } of parts) asm.vfmadd231ps(sum, weight, { base: value, index: from, offset });
    asm.addImmediate(i, 1);
    asm.cmp(i, count);
    asm.jumpIf("below", nextValue);
    for (const { sum, offset } of parts) asm.vmovupsStore({ base: sums, index: from, offset }, sum);
    asm.mov(from, next);
    asm.jump(nextChunk);
    asm.bind(smaller);
  }
}
