import { invariant } from "../../../base/errors.ts";

/** A general register of 64 bits, by its number in instructions. */
export type Register = number;
export const [RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI] = [0, 1, 2, 3, 4, 5, 6, 7] as const;
export const [R8, R9, R10, R11, R12, R13, R14, R15] = [8, 9, 10, 11, 12, 13, 14, 15] as const;

/** A vector register: `size` 0, 1 and 2 for the lower 128 bits, 256 and all 512. Those from 16 on are AVX-512's. */
export interface Vector {
  readonly size: 0 | 1 | 2;
  readonly number: number;
}
export const xmm = (number: number): Vector => ({ size: 0, number });
export const ymm = (number: number): Vector => ({ size: 1, number });
export const zmm = (number: number): Vector => ({ size: 2, number });

/** A place in the code, known once it is bound. */
export class Label {
  at: number | undefined;
}

/** base + index · scale + offset, or a place in the code. */
export type Memory =
  | {
      readonly base: Register;
      readonly index?: Register;
      readonly scale?: 1 | 2 | 4 | 8;
      readonly offset?: number;
    }
  | { readonly label: Label };

/** Where an operand may be either; a vector or a register is in the latter's bits. */
type Operand = Vector | Memory;

/** Conditions of jumps and moves: of unsigned numbers, and equality. */
const CONDITIONS = { below: 2, equal: 4, notEqual: 5, above: 7 } as const;
type Condition = keyof typeof CONDITIONS;

/** Prefixes that are part of an instruction's number, and maps of such numbers, as VEX and EVEX have them. */
const [NO_PREFIX, P66, PF2] = [0, 1, 3];
const [MAP_0F, MAP_0F38, MAP_0F3A] = [1, 2, 3];
const [SCALES, NO_INDEX] = [{ 1: 0, 2: 1, 4: 2, 8: 3 }, 4];

/** A vector instruction's number. */
interface Operation {
  readonly map: number;
  readonly prefix: number;
  readonly opcode: number;
  /** Its elements have 64 bits, where that is part of its number. */
  readonly isWide?: boolean;
}

/**
 * Machine code for x86-64, in bytes: the few instructions that the kernels use. Vector instructions are encoded as AVX's (VEX) where their
 * registers allow it and as AVX-512's (EVEX) elsewhere; the numbers are those of Intel's manual, volume 2. Operands are in its order,
 * the result first.
 */
export class Assembler {
  #code = new Uint8Array(0x4000);
  #length = 0;
  /** Distances that are not known yet: from the end of four bytes to a label. */
  readonly #distances: { readonly at: number; readonly label: Label }[] = [];

  get length(): number {
    return this.#length;
  }

  /** The code, with all labels in place. */
  finish(): Uint8Array {
    const code = this.#code.slice(0, this.#length);
    const view = new DataView(code.buffer);
    for (const { at, label } of this.#distances) {
      invariant(label.at !== undefined, "a label is not bound");
      view.setInt32(at, label.at - (at + 4), true);
    }
    return code;
  }

  bind(label: Label): Label {
    invariant(label.at === undefined, "a label is bound twice");
    label.at = this.length;
    return label;
  }

  /** A label here. */
  here(): Label {
    return this.bind(new Label());
  }

  /** Constants, from a multiple of 64 on. */
  data(label: Label, bytes: ArrayBufferView): void {
    while (this.length % 64 !== 0) this.#byte(0);
    this.bind(label);
    for (const byte of new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength)) this.#byte(byte);
  }

  // ── general registers ─────────────────────────────────────────────────────────────────────────────────────────────

  push(register: Register): void {
    this.#short(0x50, register);
  }

  pop(register: Register): void {
    this.#short(0x58, register);
  }

  ret(): void {
    this.#byte(0xc3);
  }

  cpuid(): void {
    this.#byte(0x0f);
    this.#byte(0xa2);
  }

  xgetbv(): void {
    this.#byte(0x0f);
    this.#byte(0x01);
    this.#byte(0xd0);
  }

  mov(to: Register, from: Register): void {
    this.#general(0x89, true, from, to);
  }

  /** An unsigned number of 32 bits. */
  movImmediate(to: Register, value: number): void {
    this.#short(0xb8, to);
    this.#int32(value);
  }

  /** 32 bits of memory; the register's upper half becomes 0. */
  load32(to: Register, from: Memory): void {
    this.#general(0x8b, false, to, from);
  }

  store32(to: Memory, from: Register): void {
    this.#general(0x89, false, from, to);
  }

  lea(to: Register, from: Memory): void {
    this.#general(0x8d, true, to, from);
  }

  add(to: Register, from: Register): void {
    this.#general(0x01, true, from, to);
  }

  sub(to: Register, from: Register): void {
    this.#general(0x29, true, from, to);
  }

  cmp(a: Register, b: Register): void {
    this.#general(0x39, true, b, a);
  }

  addImmediate(to: Register, value: number): void {
    this.#general(0x81, true, 0, to);
    this.#int32(value);
  }

  subImmediate(to: Register, value: number): void {
    this.#general(0x81, true, 5, to);
    this.#int32(value);
  }

  cmpImmediate(a: Register, value: number): void {
    this.#general(0x81, true, 7, a);
    this.#int32(value);
  }

  shl(to: Register, bits: number): void {
    this.#general(0xc1, true, 4, to);
    this.#byte(bits);
  }

  shr(to: Register, bits: number): void {
    this.#general(0xc1, true, 5, to);
    this.#byte(bits);
  }

  moveIf(condition: Condition, to: Register, from: Register): void {
    this.#general(0x0f40 + CONDITIONS[condition], true, to, from);
  }

  jump(label: Label): void {
    this.#byte(0xe9);
    this.#distance(label);
  }

  jumpIf(condition: Condition, label: Label): void {
    this.#byte(0x0f);
    this.#byte(0x80 + CONDITIONS[condition]);
    this.#distance(label);
  }

  jumpTo(register: Register): void {
    this.#general(0xff, false, 4, register);
  }

  /** Memory that will be read, into the second-level cache. No address is wrong. */
  prefetch(from: Memory): void {
    this.#general(0x0f18, false, 2, from);
  }

  // ── vectors ───────────────────────────────────────────────────────────────────────────────────────────────────────

  vzeroupper(): void {
    this.#byte(0xc5);
    this.#byte(0xf8);
    this.#byte(0x77);
  }

  vmovups(to: Vector, from: Operand): void {
    this.#vector({ map: MAP_0F, prefix: NO_PREFIX, opcode: 0x10 }, to, undefined, from);
  }

  vmovupsStore(to: Memory, from: Vector): void {
    this.#vector({ map: MAP_0F, prefix: NO_PREFIX, opcode: 0x11 }, from, undefined, to);
  }

  vbroadcastss(to: Vector, from: Memory): void {
    this.#vector({ map: MAP_0F38, prefix: P66, opcode: 0x18 }, to, undefined, from);
  }

  vaddps(to: Vector, a: Vector, b: Operand): void {
    this.#vector({ map: MAP_0F, prefix: NO_PREFIX, opcode: 0x58 }, to, a, b);
  }

  /** Of each 128 bits, the sums of a's two pairs and of b's. */
  vhaddps(to: Vector, a: Vector, b: Operand): void {
    this.#vector({ map: MAP_0F, prefix: PF2, opcode: 0x7c }, to, a, b);
  }

  /** 128 bits of a or b, numbered 0 to 3, as the lower half, and others as the upper. */
  vperm2f128(to: Vector, a: Vector, b: Vector, lower: number, upper: number): void {
    this.#vector({ map: MAP_0F3A, prefix: P66, opcode: 0x06 }, to, a, b);
    this.#byte(lower | (upper << 4));
  }

  /** The upper 256 of 512 bits. */
  vextractf64x4(to: Vector, from: Vector): void {
    this.#vector({ map: MAP_0F3A, prefix: P66, opcode: 0x1b, isWide: true }, from, undefined, to);
    this.#byte(1);
  }

  vmulps(to: Vector, a: Vector, b: Operand): void {
    this.#vector({ map: MAP_0F, prefix: NO_PREFIX, opcode: 0x59 }, to, a, b);
  }

  /** to += a · b. */
  vfmadd231ps(to: Vector, a: Vector, b: Operand): void {
    this.#vector({ map: MAP_0F38, prefix: P66, opcode: 0xb8 }, to, a, b);
  }

  /** to = a · to + b. */
  vfmadd213ps(to: Vector, a: Vector, b: Operand): void {
    this.#vector({ map: MAP_0F38, prefix: P66, opcode: 0xa8 }, to, a, b);
  }

  vpxor(to: Vector, a: Vector, b: Operand): void {
    this.#vector({ map: MAP_0F, prefix: P66, opcode: 0xef }, to, a, b);
  }

  vpand(to: Vector, a: Vector, b: Operand): void {
    this.#vector({ map: MAP_0F, prefix: P66, opcode: 0xdb }, to, a, b);
  }

  /** The larger int32. */
  vpmaxsd(to: Vector, a: Vector, b: Operand): void {
    this.#vector({ map: MAP_0F38, prefix: P66, opcode: 0x3d }, to, a, b);
  }

  /** A word of 16 bits, as often as there is room. */
  vpbroadcastw(to: Vector, from: Memory): void {
    this.#vector({ map: MAP_0F38, prefix: P66, opcode: 0x79 }, to, undefined, from);
  }

  /** Signed bytes as words of 32 bits. */
  vpmovsxbd(to: Vector, from: Memory): void {
    this.#vector({ map: MAP_0F38, prefix: P66, opcode: 0x21 }, to, undefined, from);
  }

  /** Unsigned bytes as words of 32 bits. */
  vpmovzxbd(to: Vector, from: Memory): void {
    this.#vector({ map: MAP_0F38, prefix: P66, opcode: 0x31 }, to, undefined, from);
  }

  /** Unsigned bytes as words of 16 bits. */
  vpmovzxbw(to: Vector, from: Memory): void {
    this.#vector({ map: MAP_0F38, prefix: P66, opcode: 0x30 }, to, undefined, from);
  }

  /** Unsigned words of 16 bits as words of 32. */
  vpmovzxwd(to: Vector, from: Memory): void {
    this.#vector({ map: MAP_0F38, prefix: P66, opcode: 0x33 }, to, undefined, from);
  }

  /** float16 as float32. */
  vcvtph2ps(to: Vector, from: Operand): void {
    this.#vector({ map: MAP_0F38, prefix: P66, opcode: 0x13 }, to, undefined, from);
  }

  /** int32 as float32. */
  vcvtdq2ps(to: Vector, from: Operand): void {
    this.#vector({ map: MAP_0F, prefix: NO_PREFIX, opcode: 0x5b }, to, undefined, from);
  }

  /** to[i] = table[indices[i]]: the lowest 3 bits of an index in 256 bits, 4 in 512. */
  vpermps(to: Vector, indices: Vector, table: Operand): void {
    this.#vector({ map: MAP_0F38, prefix: P66, opcode: 0x16 }, to, indices, table);
  }

  /** Words of 32 bits, to the left. */
  vpslld(to: Vector, from: Vector, bits: number): void {
    this.#shift(0x72, 6, to, from, bits);
  }

  /** Words of 32 bits, to the right, with zeros. */
  vpsrld(to: Vector, from: Vector, bits: number): void {
    this.#shift(0x72, 2, to, from, bits);
  }

  /** Words of 32 bits, to the right, with their signs. */
  vpsrad(to: Vector, from: Vector, bits: number): void {
    this.#shift(0x72, 4, to, from, bits);
  }

  /** Words of 16 bits, to the left. */
  vpsllw(to: Vector, from: Vector, bits: number): void {
    this.#shift(0x71, 6, to, from, bits);
  }

  /** Words of 16 bits, to the right, with their signs. */
  vpsraw(to: Vector, from: Vector, bits: number): void {
    this.#shift(0x71, 4, to, from, bits);
  }

  // ── encoding ──────────────────────────────────────────────────────────────────────────────────────────────────────

  #byte(value: number): void {
    if (this.#length === this.#code.length) {
      const longer = new Uint8Array(2 * this.#length);
      longer.set(this.#code);
      this.#code = longer;
    }
    this.#code[this.#length++] = value;
  }

  #int32(value: number): void {
    for (let shift = 0; shift < 32; shift += 8) this.#byte((value >> shift) & 0xff);
  }

  #distance(label: Label): void {
    this.#distances.push({ at: this.length, label });
    this.#int32(0);
  }

  /** An instruction whose register is part of its number. */
  #short(opcode: number, register: Register): void {
    if (register > 7) this.#byte(0x41);
    this.#byte(opcode + (register & 7));
  }

  #general(opcode: number, isWide: boolean, first: number, second: Register | Memory): void {
    const { middle, upper } =
      typeof second === "number"
        ? { middle: 0, upper: second >> 3 }
        : "label" in second
          ? { middle: 0, upper: 0 }
          : { middle: (second.index ?? 0) >> 3, upper: second.base >> 3 };
    const rex = (Number(isWide) << 3) | ((first >> 3) << 2) | (middle << 1) | upper;
    if (rex !== 0) this.#byte(0x40 | rex);
    if (opcode > 0xff) this.#byte(opcode >> 8);
    this.#byte(opcode & 0xff);
    this.#operands(first, second, true);
  }

  /** The byte ModRM and what it asks for. Offsets of one byte mean something else in EVEX, and are left out there. */
  #operands(first: number, second: Register | Memory, hasShortOffsets: boolean): void {
    const reg = (first & 7) << 3;
    if (typeof second === "number") {
      this.#byte(0xc0 | reg | (second & 7));
      return;
    }
    if ("label" in second) {
      this.#byte(reg | 5);
      this.#distance(second.label);
      return;
    }
    const { base, index, scale = 1, offset = 0 } = second;
    invariant(index !== RSP, "rsp is no index");
    // Without an offset rbp's and r13's bits mean something else.
    const isNone = offset === 0 && (base & 7) !== 5;
    const isShort = hasShortOffsets && offset >= -128 && offset < 128;
    const mode = isNone ? 0 : isShort ? 0x40 : 0x80;
    if (index === undefined && (base & 7) !== 4) this.#byte(mode | reg | (base & 7));
    else {
      this.#byte(mode | reg | 4);
      this.#byte((SCALES[scale] << 6) | (((index ?? NO_INDEX) & 7) << 3) | (base & 7));
    }
    if (isNone) return;
    if (isShort) this.#byte(offset & 0xff);
    else this.#int32(offset);
  }

  /** A shift by a constant: `extension` takes the place of the first operand, which takes the second's. */
  #shift(opcode: number, extension: number, to: Vector, from: Vector, bits: number): void {
    const as = { size: to.size, number: extension };
    this.#vector({ map: MAP_0F, prefix: P66, opcode }, as, to, from);
    this.#byte(bits);
  }

  #vector(
    { map, prefix, opcode, isWide = false }: Operation,
    first: Vector,
    second: Vector | undefined,
    third: Operand,
  ): void {
    const isVector = "number" in third;
    const isExtended =
      first.size === 2 || Math.max(first.number, second?.number ?? 0, isVector ? third.number : 0) > 15;
    const extra = second?.number ?? 0;
    const [x, b] = isVector
      ? [third.number >> 4, (third.number >> 3) & 1]
      : "label" in third
        ? [0, 0]
        : [(third.index ?? 0) >> 3, third.base >> 3];
    const r = (first.number >> 3) & 1;
    // Bits of registers are inverted in prefixes.
    const high = ((1 - r) << 7) | ((1 - x) << 6) | ((1 - b) << 5);
    const low = (Number(isWide) << 7) | ((~extra & 15) << 3) | prefix;
    if (isExtended) {
      this.#byte(0x62);
      this.#byte(high | ((1 - (first.number >> 4)) << 4) | map);
      this.#byte(low | 4);
      this.#byte((first.size << 5) | ((1 - (extra >> 4)) << 3));
    } else {
      this.#byte(0xc4);
      this.#byte(high | map);
      this.#byte(low | (first.size << 2));
    }
    this.#byte(opcode);
    this.#operands(first.number & 15, isVector ? third.number & 15 : third, !isExtended);
  }
}
