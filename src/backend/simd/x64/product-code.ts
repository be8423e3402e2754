import * as layout from "../../../../kernels-wasm/layout.ts";
import { Assembler, R12, R13, R14, R15, RBP, RBX, RDX } from "./assembler.ts";
import { type Form, Forms, type Isa } from "./forms.ts";
import { emitConvert, emitOne, emitTiles, emitUnpack } from "./product-routines.ts";

/** Registers that a function keeps for its caller. */
const KEPT = [RBX, RBP, R12, R13, R14, R15];

/** Routines for a form of weights, by their distance from the code's beginning. */
export interface FormRoutines {
  readonly one: number;
  readonly unpack: number;
  /** A part of a row begins at a multiple of so many columns. */
  readonly columns: number;
  /** Its columns have scales. */
  readonly isScaled: boolean;
}

/**
 * Code for products. Its beginning is a function of three addresses: parameters, memory that addresses among these are
 * in, and the routine.
 */
export interface ProductCode {
  readonly isa: Isa;
  readonly bytes: Uint8Array;
  /** By layout.ts's numbers of forms. */
  readonly forms: readonly FormRoutines[];
  /** By layout.ts's numbers of scales' forms: one zero point for all, and one each. */
  readonly convert: readonly (readonly [number, number])[];
  readonly tiles: number;
}

export function assembleProducts(isa: Isa): ProductCode {
  const asm = new Assembler();
  const forms = new Forms(asm, isa);
  for (const register of KEPT) asm.push(register);
  asm.jumpTo(RDX);
  const routine = (emit: () => void) => {
    const { length } = asm;
    emit();
    asm.vzeroupper();
    for (const register of KEPT.toReversed()) asm.pop(register);
    asm.ret();
    return length;
  };
  const routines: FormRoutines[] = [];
  const add = (index: number, form: Form) => {
    const { columns, isScaled } = form;
    const [one, unpack] = [routine(() => emitOne(asm, isa, form)), routine(() => emitUnpack(asm, form))];
    routines[index] = { one, unpack, columns, isScaled };
  };
  add(layout.FLOAT32, forms.float32());
  add(layout.BFLOAT16, forms.bfloat16());
  add(layout.FLOAT16, forms.float16());
  add(layout.FLOAT8, forms.float8());
  add(layout.INT8, forms.int8());
  add(layout.INT4, forms.int4());
  add(layout.MXFP4, forms.mxfp4());
  // Superblocks are codes with scales and offsets as well.
  routines[layout.NIBBLE_SUPERBLOCKS] = routines[layout.INT4]!;
  routines[layout.BYTE_SUPERBLOCKS] = routines[layout.INT8]!;
  const convert: [number, number][] = [];
  for (const [index, scales] of [
    [layout.BFLOAT16, forms.bfloat16Scales()],
    [layout.FLOAT16, forms.float16Scales()],
    [layout.MXFP4, forms.mxfp4Scales()],
  ] as const)
    convert[index] = [
      routine(() => emitConvert(asm, isa, scales, false)),
      routine(() => emitConvert(asm, isa, scales, true)),
    ];
  const tiles = routine(() => emitTiles(asm, isa));
  forms.emitConstants();
  return { isa, bytes: asm.finish(), forms: routines, convert, tiles };
}
