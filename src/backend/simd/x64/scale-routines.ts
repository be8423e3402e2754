import * as layout from "../../../../kernels-wasm/layout.ts";
import { type Assembler, R9, RAX, RBX, RCX, RDI, RDX, xmm, ymm } from "./assembler.ts";
import type { Isa, ScaleForm } from "./forms.ts";
import { address, parameter } from "./product-routines.ts";

/** Bytes of float32 for as many groups as a vector of 256 bits has. */
const VECTOR_BYTES = 32;

/**
 * Scales as float32, and offsets: scale · factor of one zero point for all, scale · zero point · factor of one each.
 */
export function emitConvert(asm: Assembler, isa: Isa, { bytes, load }: ScaleForm, hasZeros: boolean): void {
  const [from, zeros, to, count, at] = [RAX, RBX, RCX, RDX, R9];
  const [scales, offsets, factor] = [isa.vector(0), isa.vector(1), isa.vector(2)];
  address(asm, from, layout.CONVERT_FROM);
  address(asm, to, layout.CONVERT_TO);
  address(asm, zeros, layout.CONVERT_OTHERS);
  parameter(asm, count, layout.CONVERT_COUNT);
  asm.vbroadcastss(factor, { base: RDI, offset: 4 * layout.CONVERT_FACTOR });
  asm.movImmediate(at, 0);
  const next = asm.here();
  load(scales, { base: from, index: at, scale: bytes });
  if (hasZeros) {
    asm.vpmovzxbd(offsets, { base: zeros, index: at });
    asm.vcvtdq2ps(offsets, offsets);
    asm.vmulps(offsets, offsets, factor);
    asm.vmulps(offsets, offsets, scales);
  } else asm.vmulps(offsets, scales, factor);
  asm.vmovupsStore({ base: to, index: at, scale: 4 }, scales);
  asm.vmovupsStore({ base: to, index: at, scale: 4, offset: layout.OFFSETS_AFTER }, offsets);
  asm.addImmediate(at, isa.lanes);
  asm.cmp(at, count);
  asm.jumpIf("below", next);
}

/**
 * Scales of superblocks of 8 or 16 groups, step · unit, and offsets, step · unit · factor of minima, or scale · factor. A scale's step is the
 * lower byte of two where there are minima. The vectors are AVX2's: a superblock has no more than that.
 */
export function emitConvertSuperblocks(asm: Assembler, groups: 8 | 16, hasMinima: boolean): void {
  const [steps, units, to, count] = [RAX, RBX, RCX, RDX];
  const [scales, offsets, factor, unit, unitOfMinima] = [ymm(0), ymm(1), ymm(2), ymm(3), ymm(4)];
  address(asm, steps, layout.CONVERT_FROM);
  address(asm, to, layout.CONVERT_TO);
  address(asm, units, layout.CONVERT_OTHERS);
  parameter(asm, count, layout.CONVERT_COUNT);
  asm.vbroadcastss(factor, { base: RDI, offset: 4 * layout.CONVERT_FACTOR });
  const next = asm.here();
  asm.vpbroadcastw(xmm(3), { base: units });
  asm.vcvtph2ps(unit, xmm(3));
  if (hasMinima) {
    asm.vpbroadcastw(xmm(4), { base: units, offset: 2 });
    asm.vcvtph2ps(unitOfMinima, xmm(4));
    asm.vmulps(unitOfMinima, unitOfMinima, factor);
  }
  for (let group = 0; group < groups; group += 8) {
    if (hasMinima) {
      asm.vpmovzxwd(scales, { base: steps, offset: 2 * group });
      asm.vpslld(offsets, scales, 16);
      asm.vpsrad(offsets, offsets, 24);
      asm.vcvtdq2ps(offsets, offsets);
      asm.vmulps(offsets, offsets, unitOfMinima);
      asm.vpslld(scales, scales, 24);
      asm.vpsrad(scales, scales, 24);
    } else asm.vpmovsxbd(scales, { base: steps, offset: group });
    asm.vcvtdq2ps(scales, scales);
    asm.vmulps(scales, scales, unit);
    if (!hasMinima) asm.vmulps(offsets, scales, factor);
    const offset = (group / 8) * VECTOR_BYTES;
    asm.vmovupsStore({ base: to, offset }, scales);
    asm.vmovupsStore({ base: to, offset: offset + layout.OFFSETS_AFTER }, offsets);
  }
  asm.addImmediate(steps, groups * (hasMinima ? 2 : 1));
  asm.addImmediate(units, hasMinima ? 4 : 2);
  asm.addImmediate(to, (groups / 8) * VECTOR_BYTES);
  asm.subImmediate(count, 1);
  asm.jumpIf("notEqual", next);
}
