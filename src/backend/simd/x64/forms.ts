import { OFFSETS_AFTER } from "../../../../kernels-wasm/layout.ts";
import {
  type Assembler,
  Label,
  type Memory,
  type Register,
  type Vector,
  xmm,
  ymm,
  zmm,
} from "./assembler.ts";

/** The vectors that code is assembled for. */
export interface Isa {
  readonly name: "avx2" | "avx512";
  /** float32 in a vector. */
  readonly lanes: 8 | 16;
  /** Vector registers. */
  readonly registers: 16 | 32;
  readonly vector: (number: number) => Vector;
  /** A vector of half its size. */
  readonly half: (number: number) => Vector;
  /** Tokens that pass four rows of a panel at once: all registers hold sums, inputs and a weight or two. */
  readonly tileTokens: number;
}

export const AVX2: Isa = { name: "avx2", lanes: 8, registers: 16, vector: ymm, half: xmm, tileTokens: 3 };
export const AVX512: Isa = {
  name: "avx512",
  lanes: 16,
  registers: 32,
  vector: zmm,
  half: ymm,
  tileTokens: 6,
};

/** Where a row's elements are: a register, one with bytes from there on, and an offset. */
export interface Place {
  readonly base: Register;
  readonly index: Register;
}

/** Where a scale is; its offset is `OFFSETS_AFTER` bytes behind it. */
export type ScaleAt = Exclude<Memory, { readonly label: Label }>;

/** Called with `lanes` float32 of a row as soon as they are there, and the columns before them in the step. */
type Use = (column: number, weights: Vector) => void;

/**
 * A form that elements of a matrix are stored in: code that makes float32 of them. Registers 0 to 3 are the caller's, those of a row's
 * scale are 4 to 11, 12 to 14 hold what a step needs, 15 and above constants; of forms with no offsets 8 and 9 too.
 */
export interface Form {
  /** Columns of a step, and bytes that hold them. */
  readonly columns: 16 | 32;
  readonly bytes: number;
  /** Columns have scales and offsets, float32; see layout.ts. An element is code · scale + offset. */
  readonly isScaled: boolean;
  /** Loads constants. */
  begin(): void;
  /** Loads the scale at `from` of a row, 0 to 3, and its offset. */
  scale(row: number, from: ScaleAt): void;
  /** Unpacks a step's columns of a row. Where a byte holds two of them, those at even columns come first. */
  step(row: number, place: Place, use: Use): void;
}

/** A form that scales are stored in. */
export interface ScaleForm {
  readonly bytes: 1 | 2;
  /** Loads `lanes` of them as float32. */
  readonly load: (to: Vector, from: Memory) => void;
}

const [SCALES, OFFSETS] = [4, 8];
const [TEMPORARY, OTHER, THIRD] = [12, 13, 14];
const CONSTANT = 15;

/** The forms by the names that they have in layout.ts; constants follow the code of all with `emitConstants`. */
export class Forms {
  readonly #constants: { readonly label: Label; readonly data: ArrayBufferView }[] = [];

  constructor(
    private readonly asm: Assembler,
    private readonly isa: Isa,
  ) {}

  /** Behind code that ends. */
  emitConstants(): void {
    for (const { label, data } of this.#constants) this.asm.data(label, data);
  }

  float32(): Form {
    return this.#plain(4, (to, from) => this.asm.vmovups(to, from));
  }

  bfloat16(): Form {
    return this.#plain(2, this.bfloat16Scales().load);
  }

  float16(): Form {
    return this.#plain(2, this.float16Scales().load);
  }

  /** The upper half of a float32. */
  bfloat16Scales(): ScaleForm {
    const load = (to: Vector, from: Memory) => {
      this.asm.vpmovzxwd(to, from);
      this.asm.vpslld(to, to, 16);
    };
    return { bytes: 2, load };
  }

  float16Scales(): ScaleForm {
    return { bytes: 2, load: (to, from) => this.asm.vcvtph2ps(to, from) };
  }

  /** Halves of powers of two, e8m0: bytes are float32's exponents, 0 stands for the subnormal 2⁻¹²⁷. */
  mxfp4Scales(): ScaleForm {
    const least = this.#data(new Int32Array(16).fill(1 << 22));
    const half = this.#data(new Float32Array(16).fill(0.5));
    const load = (to: Vector, from: Memory) => {
      this.asm.vpmovzxbd(to, from);
      this.asm.vpslld(to, to, 23);
      this.asm.vpmaxsd(to, to, { label: least });
      this.asm.vmulps(to, to, { label: half });
    };
    return { bytes: 1, load };
  }

  /**
   * float8_e4m3. As a float16, whose exponent has one bit more, it is 2⁻⁸ times itself: its scales here are 2⁸ times its own. The
   * shift to the right leaves the sign's bit twice.
   */
  float8(): Form {
    const { asm, isa } = this;
    const mask = isa.half(CONSTANT);
    return this.#scaled({
      columns: 16,
      bytes: 16,
      begin: () =>
        this.#constant(
          mask,
          Uint16Array.from({ length: 16 }, () => 0xbfff),
        ),
      scale: (row, from) => asm.vbroadcastss(isa.vector(SCALES + row), from),
      step: (row, place, use) =>
        this.#each(16, (column) => {
          const [words, weights] = [isa.half(TEMPORARY), isa.vector(TEMPORARY)];
          asm.vpmovzxbw(words, { ...place, offset: column });
          asm.vpsllw(words, words, 8);
          asm.vpsraw(words, words, 1);
          asm.vpand(words, words, mask);
          asm.vcvtph2ps(weights, words);
          asm.vmulps(weights, weights, isa.vector(SCALES + row));
          use(column, weights);
        }),
    });
  }

  int8(): Form {
    const { asm, isa } = this;
    return this.#scaled({
      columns: 16,
      bytes: 16,
      begin: () => {},
      scale: (row, from) => this.#scaleAndOffset(row, from),
      step: (row, place, use) =>
        this.#each(16, (column) => {
          const weights = isa.vector(TEMPORARY);
          asm.vpmovzxbd(weights, { ...place, offset: column });
          asm.vcvtdq2ps(weights, weights);
          asm.vfmadd213ps(weights, isa.vector(SCALES + row), isa.vector(OFFSETS + row));
          use(column, weights);
        }),
    });
  }

  /** Integers of four bits, in the lower half of a byte first. */
  int4(): Form {
    const { asm, isa } = this;
    if (isa.lanes === 16)
      return this.#lookedUp(
        Float32Array.from({ length: 16 }, (_, code) => code),
        (row, from, codes) => {
          this.#scaleAndOffset(row, from);
          asm.vfmadd213ps(isa.vector(SCALES + row), codes, isa.vector(OFFSETS + row));
        },
      );
    const mask = isa.vector(CONSTANT);
    return this.#scaled({
      columns: 32,
      bytes: 16,
      begin: () => this.#constant(mask, new Int32Array(8).fill(15)),
      scale: (row, from) => this.#scaleAndOffset(row, from),
      step: (row, place, use) =>
        this.#nibbles(place, (column, codes, isUpper) => {
          const weights = isUpper ? codes : isa.vector(THIRD);
          if (!isUpper) asm.vpand(weights, codes, mask);
          asm.vcvtdq2ps(weights, weights);
          asm.vfmadd213ps(weights, isa.vector(SCALES + row), isa.vector(OFFSETS + row));
          use(column, weights);
        }),
    });
  }

  /** Floats of four bits, e2m1: 0, ½, 1, 1½, 2, 3, 4, 6 and their negatives; its scales here are half of its own. */
  mxfp4(): Form {
    const { asm, isa } = this;
    const magnitudes = [0, 1, 2, 3, 4, 6, 8, 12];
    if (isa.lanes === 16)
      return this.#lookedUp(
        Float32Array.from([...magnitudes, ...magnitudes.map((magnitude) => -magnitude)]),
        (row, from, values) => {
          const table = isa.vector(SCALES + row);
          asm.vbroadcastss(table, from);
          asm.vmulps(table, table, values);
        },
      );
    const [values, sign] = [isa.vector(OFFSETS), isa.vector(OFFSETS + 1)];
    return this.#scaled({
      columns: 32,
      bytes: 16,
      begin: () => {
        this.#constant(values, Float32Array.from(magnitudes));
        this.#constant(sign, new Int32Array(8).fill(-(2 ** 31)));
      },
      scale: (row, from) => {
        const table = isa.vector(SCALES + row);
        asm.vbroadcastss(table, from);
        asm.vmulps(table, table, values);
      },
      step: (row, place, use) =>
        this.#nibbles(place, (column, codes) => {
          const [weights, signs] = [isa.vector(THIRD), isa.vector(CONSTANT)];
          asm.vpermps(weights, codes, isa.vector(SCALES + row));
          asm.vpslld(signs, codes, 28);
          asm.vpand(signs, signs, sign);
          asm.vpxor(weights, weights, signs);
          use(column, weights);
        }),
    });
  }

  #plain(size: number, load: (to: Vector, from: Memory) => void): Form {
    const { isa } = this;
    return {
      columns: 16,
      bytes: 16 * size,
      isScaled: false,
      begin: () => {},
      scale: () => {},
      step: (_, place, use) =>
        this.#each(16, (column) => {
          const weights = isa.vector(TEMPORARY);
          load(weights, { ...place, offset: column * size });
          use(column, weights);
        }),
    };
  }

  #scaled(form: Omit<Form, "isScaled">): Form {
    return { ...form, isScaled: true };
  }

  /** AVX-512 looks sixteen float32 up by the lowest four bits of words: a row's register holds what its codes stand for. */
  #lookedUp(values: Float32Array, scale: (row: number, from: ScaleAt, values: Vector) => void): Form {
    const { asm, isa } = this;
    const constant = isa.vector(CONSTANT);
    return this.#scaled({
      columns: 32,
      bytes: 16,
      begin: () => this.#constant(constant, values),
      scale: (row, from) => scale(row, from, constant),
      step: (row, place, use) =>
        this.#nibbles(place, (column, codes) => {
          const weights = isa.vector(THIRD);
          asm.vpermps(weights, codes, isa.vector(SCALES + row));
          use(column, weights);
        }),
    });
  }

  /** The codes of 16 bytes, in the lowest four bits of words; what is above them is 0 in upper halves alone. */
  #nibbles(place: Place, use: (column: number, codes: Vector, isUpper: boolean) => void): void {
    const { asm, isa } = this;
    const codes = (column: number) => isa.vector(column === 0 ? TEMPORARY : OTHER);
    this.#each(16, (column) => asm.vpmovzxbd(codes(column), { ...place, offset: column }));
    this.#each(16, (column) => use(column, codes(column), false));
    this.#each(16, (column) => {
      asm.vpsrld(codes(column), codes(column), 4);
      use(16 + column, codes(column), true);
    });
  }

  #scaleAndOffset(row: number, from: ScaleAt): void {
    const { asm, isa } = this;
    asm.vbroadcastss(isa.vector(SCALES + row), from);
    asm.vbroadcastss(isa.vector(OFFSETS + row), { ...from, offset: OFFSETS_AFTER });
  }

  /** Vectors of so many columns, by the first column of each. */
  #each(columns: number, body: (column: number) => void): void {
    for (let column = 0; column < columns; column += this.isa.lanes) body(column);
  }

  #constant(to: Vector, data: ArrayBufferView): void {
    this.asm.vmovups(to, { label: this.#data(data) });
  }

  #data(data: ArrayBufferView): Label {
    const label = new Label();
    this.#constants.push({ label, data });
    return label;
  }
}
