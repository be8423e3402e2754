import { ptr } from "bun:ffi";
import { Assembler, Label, RAX, RBX, RCX, RDI } from "./assembler.ts";
import { ExecutableMemory, functionAt } from "./executable-memory.ts";
import { AVX2, AVX512, type Isa } from "./forms.ts";

/** A processor's answers to CPUID, and the registers that the system keeps for each thread (XCR0; 0 where it does not say). */
export interface Features {
  /** The highest leaf. */
  readonly leaves: number;
  /** ECX of leaf 1, EBX of leaf 7. */
  readonly leaf1: number;
  readonly leaf7: number;
  readonly kept: number;
}

/** Bits of leaf 1's ECX and leaf 7's EBX. */
const [FMA, OSXSAVE, AVX, F16C] = [12, 27, 28, 29];
/** AVX-512 is F, of 32 bits and more; BW, of bytes and words; and VL, of registers from 16 on at less than 512 bits: the first processors had F alone. */
const [HAS_AVX2, AVX512F, AVX512BW, AVX512VL] = [5, 16, 30, 31];
/** Bits of XCR0: xmm and ymm; those and masks, upper halves of zmm and the upper zmm. */
const KEPT_AVX = 0b0000_0110;
const KEPT_AVX512 = 0b1110_0110;

/** The vectors that such a processor and its system have. */
export function isaOf({ leaves, leaf1, leaf7, kept }: Features): Isa | undefined {
  const has = (word: number, bit: number) => (word & (1 << bit)) !== 0;
  const keeps = (bits: number) => (kept & bits) === bits;
  const isUsual = [FMA, OSXSAVE, AVX, F16C].every((bit) => has(leaf1, bit));
  if (leaves < 7 || !isUsual || !has(leaf7, HAS_AVX2) || !keeps(KEPT_AVX)) return undefined;
  const isWide = [AVX512F, AVX512BW, AVX512VL].every((bit) => has(leaf7, bit));
  return isWide && keeps(KEPT_AVX512) ? AVX512 : AVX2;
}

/** Undefined where this machine has another kind of processor, or does not execute what is written. */
export function readFeatures(): Features | undefined {
  if (process.arch !== "x64") return undefined;
  const memory = ExecutableMemory.create(assembleReading());
  if (memory === undefined) return undefined;
  const words = new Int32Array(4);
  try {
    functionAt(memory.address)(ptr(words), 0, 0);
  } catch {
    // Calls of native functions are code that Bun makes, which it may not be allowed to.
    return undefined;
  } finally {
    memory.dispose();
  }
  const [leaves, leaf1, leaf7, kept] = words;
  return { leaves: leaves!, leaf1: leaf1!, leaf7: leaf7!, kept: kept! };
}

/** Code that writes the features to its first argument. */
function assembleReading(): Uint8Array {
  const asm = new Assembler();
  const word = (index: number) => ({ base: RDI, offset: 4 * index });
  const leaf = (index: number) => {
    asm.movImmediate(RAX, index);
    asm.movImmediate(RCX, 0);
    asm.cpuid();
  };
  asm.push(RBX);
  leaf(0);
  asm.store32(word(0), RAX);
  leaf(7);
  asm.store32(word(2), RBX);
  leaf(1);
  asm.store32(word(1), RCX);
  // Without OSXSAVE there is no XGETBV.
  const end = new Label();
  asm.shl(RCX, 63 - OSXSAVE);
  asm.shr(RCX, 63);
  asm.cmpImmediate(RCX, 0);
  asm.jumpIf("equal", end);
  asm.movImmediate(RCX, 0);
  asm.xgetbv();
  asm.store32(word(3), RAX);
  asm.bind(end);
  asm.pop(RBX);
  asm.ret();
  return asm.finish();
}
