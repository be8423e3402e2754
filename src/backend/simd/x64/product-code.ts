import * as layout from "../../../../kernels-wasm/layout.ts";
import { Assembler, R12, R13, R14, R15, RBP, RBX, RDX } from "./assembler.ts";
import { emitDots, emitWeighted } from "./attention-routines.ts";
import { type Form, Forms, type Isa } from "./forms.ts";
import { emitOne, emitTiles, emitUnpack } from "./product-routines.ts";
import { emitConvert, emitConvertSuperblocks } from "./scale-routines.ts";

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
  /** Routines that make float32 of scales, by their keys. */
  readonly convert: Readonly<Record<string, number>>;
  readonly tiles: number;
  /** Attention's scores, and sums of weighted values, of heads that are whole vectors. */
  readonly dots: number;
  readonly weighted: number;
}

/** The key of scales of a form in layout.ts, which have zero points or one for all. */
export function scalesKey(form: number, hasZeros: boolean): string {
  return `${form}${hasZeros ? " with zeros" : ""}`;
}

/** The key of superblocks' scales, of so many groups. */
export function superblocksKey(groups: number, hasMinima: boolean): string {
  return `superblocks of ${groups}${hasMinima ? " with minima" : ""}`;
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
  const convert: Record<string, number> = {};
  for (const [index, scales] of [
    [layout.BFLOAT16, forms.bfloat16Scales()],
    [layout.FLOAT16, forms.float16Scales()],
    [layout.MXFP4, forms.mxfp4Scales()],
  ] as const) {
    for (const hasZeros of [false, true])
      convert[scalesKey(index, hasZeros)] = routine(() => emitConvert(asm, isa, scales, hasZeros));
  }
  for (const groups of [8, 16] as const) {
    for (const hasMinima of [false, true])
      convert[superblocksKey(groups, hasMinima)] = routine(() =>
        emitConvertSuperblocks(asm, groups, hasMinima),
      );
  }
  const tiles = routine(() => emitTiles(asm, isa));
  const dots = routine(() => emitDots(asm, isa));
  const weighted = routine(() => emitWeighted(asm, isa));
  forms.emitConstants();
  return { isa, bytes: asm.finish(), forms: routines, convert, tiles, dots, weighted };
}
