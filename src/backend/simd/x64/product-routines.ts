import * as layout from "../../../../kernels-wasm/layout.ts";
import {
  type Assembler,
  Label,
  type Memory,
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
  type Register,
  RSI,
} from "./assembler.ts";
import type { Form, Isa, ScaleAt } from "./forms.ts";

/** Rows that one token is multiplied by together, and rows of a panel that tokens pass together. */
const ROWS = 4;
const FLOAT_BYTES = 4;
const CACHE_LINE = 64;

/** Scales of index registers: float32 inputs for each byte of a row. */
function inputScale({ columns, bytes }: Form): 1 | 2 | 4 | 8 {
  return ((FLOAT_BYTES * columns) / bytes) as 1 | 2 | 4 | 8;
}

/** The 32-bit parameter `word`; see layout.ts. Parameters' address is in rdi, the memory's in rsi. */
export function parameter(asm: Assembler, to: Register, word: number): void {
  asm.load32(to, { base: RDI, offset: 4 * word });
}

/** The same of an address in the memory. */
export function address(asm: Assembler, to: Register, word: number): void {
  parameter(asm, to, word);
  asm.add(to, RSI);
}

/** base + i · stride of i below four; `second` holds base + stride. */
function fourFrom(base: Register, stride: Register, second: Register): readonly ScaleAt[] {
  return [
    { base },
    { base: second },
    { base, index: stride, scale: 2 },
    { base: second, index: stride, scale: 2 },
  ];
}

/**
 * Products of one token and rows of a matrix: four rows at a time that lie far apart, since processors foresee one place in a page of
 * memory. A lane's products are added in the order of their columns. Writes a vector of sums for each row.
 */
export function emitOne(asm: Assembler, isa: Isa, form: Form): void {
  const rows = [RAX, RBX, RCX, RDX];
  const [x, at, rowBytes, partBytes, scales, scalesApart, count] = [R8, R9, R10, R11, R12, R13, R14];
  const [end, other] = [R15, RBP];
  const vectorBytes = FLOAT_BYTES * isa.lanes;
  address(asm, x, layout.ONE_X);
  address(asm, scales, layout.ONE_SCALES);
  for (const [i, row] of rows.entries()) address(asm, row, layout.ONE_ROWS + i);
  parameter(asm, count, layout.ONE_COUNT);
  parameter(asm, rowBytes, layout.ONE_ROW_BYTES);
  parameter(asm, partBytes, layout.ONE_PART_BYTES);
  parameter(asm, scalesApart, layout.ONE_SCALES_APART);
  form.begin();

  const nextRows = asm.here();
  // Past the last row there may be no memory.
  address(asm, other, layout.ONE_LAST);
  for (const row of rows) {
    asm.cmp(row, other);
    asm.moveIf("above", row, other);
  }
  for (let i = 0; i < ROWS; i++) asm.vpxor(isa.vector(i), isa.vector(i), isa.vector(i));
  asm.movImmediate(at, 0);
  if (!form.isScaled) asm.mov(end, rowBytes);
  const nextPart = asm.here();
  if (form.isScaled) {
    asm.lea(other, { base: scales, index: scalesApart });
    for (const [i, scale] of fourFrom(scales, scalesApart, other).entries()) form.scale(i, scale);
    asm.addImmediate(scales, FLOAT_BYTES);
    asm.lea(end, { base: at, index: partBytes });
  }
  const nextStep = asm.here();
  for (const [i, row] of rows.entries()) {
    form.step(i, { base: row, index: at }, (column, weights) =>
      asm.vfmadd231ps(isa.vector(i), weights, {
        ...{ base: x, index: at, scale: inputScale(form) },
        offset: FLOAT_BYTES * column,
      }),
    );
  }
  asm.addImmediate(at, form.bytes);
  asm.cmp(at, end);
  asm.jumpIf("below", nextStep);
  if (form.isScaled) {
    asm.cmp(at, rowBytes);
    asm.jumpIf("below", nextPart);
  }
  const [lanes, apart] = [end, at];
  address(asm, lanes, layout.ONE_LANES);
  parameter(asm, apart, layout.ONE_COUNT);
  asm.shl(apart, Math.log2(vectorBytes));
  asm.lea(other, { base: lanes, index: apart });
  for (const [i, sums] of fourFrom(lanes, apart, other).entries()) asm.vmovupsStore(sums, isa.vector(i));
  asm.addImmediate(lanes, vectorBytes);
  asm.sub(lanes, RSI);
  asm.store32({ base: RDI, offset: 4 * layout.ONE_LANES }, lanes);
  for (const row of rows) asm.add(row, rowBytes);
  asm.subImmediate(count, 1);
  asm.jumpIf("notEqual", nextRows);
}

/** Columns of eight rows as float32, into a panel. */
export function emitUnpack(asm: Assembler, form: Form): void {
  const [row, next, nextEnd, at, panel, scales, end] = [RAX, RBX, RCX, R9, R10, R12, R15];
  const [total, partBytes, ofRow] = [R14, R11, R13];
  address(asm, panel, layout.UNPACK_PANEL);
  address(asm, scales, layout.UNPACK_SCALES);
  parameter(asm, total, layout.UNPACK_BYTES);
  parameter(asm, partBytes, layout.UNPACK_PART_BYTES);
  asm.mov(next, RDI);
  asm.lea(nextEnd, { base: next, offset: 4 * layout.PANEL_ROWS });
  form.begin();

  const nextRow = asm.here();
  asm.load32(row, { base: next, offset: 4 * layout.UNPACK_ROWS });
  asm.add(row, RSI);
  asm.movImmediate(at, 0);
  if (form.isScaled) asm.mov(ofRow, scales);
  else asm.mov(end, total);
  const nextPart = asm.here();
  if (form.isScaled) {
    form.scale(0, { base: ofRow });
    asm.addImmediate(ofRow, FLOAT_BYTES);
    asm.lea(end, { base: at, index: partBytes });
  }
  const nextStep = asm.here();
  form.step(0, { base: row, index: at }, (column, weights) =>
    asm.vmovupsStore(
      { base: panel, index: at, scale: inputScale(form), offset: FLOAT_BYTES * column },
      weights,
    ),
  );
  asm.addImmediate(at, form.bytes);
  asm.cmp(at, end);
  asm.jumpIf("below", nextStep);
  if (form.isScaled) {
    asm.cmp(at, total);
    asm.jumpIf("below", nextPart);
  }
  asm.addImmediate(panel, layout.WIDE_STRIDE);
  parameter(asm, ofRow, layout.UNPACK_SCALES_APART);
  asm.add(scales, ofRow);
  asm.addImmediate(next, 4);
  asm.cmp(next, nextEnd);
  asm.jumpIf("below", nextRow);
}

/**
 * lanes[tokens, 8] += panel[8] · x[tokens], or = where nothing was summed before: four rows and some tokens at a time. Meanwhile the
 * memory that the next panel will be made of comes into the second-level cache.
 */
export function emitTiles(asm: Assembler, isa: Isa): void {
  const [x, stride, three, five, tokens] = [R8, R9, R10, R11, R12];
  const [at, w, wEnd, lanes, panel, rows] = [RAX, RCX, RDX, RBX, RBP, R15];
  const [ahead, aheadStep] = [R13, R14];
  const vectorBytes = FLOAT_BYTES * isa.lanes;
  address(asm, x, layout.TILES_X);
  address(asm, panel, layout.TILES_PANEL);
  address(asm, lanes, layout.TILES_LANES);
  address(asm, ahead, layout.TILES_AHEAD);
  parameter(asm, stride, layout.TILES_X_STRIDE);
  parameter(asm, tokens, layout.TILES_TOKENS);
  asm.lea(three, { base: stride, index: stride, scale: 2 });
  asm.lea(five, { base: stride, index: stride, scale: 4 });
  const inputs: readonly Memory[] = [
    { base: at },
    { base: at, index: stride },
    { base: at, index: stride, scale: 2 },
    { base: at, index: three },
    { base: at, index: stride, scale: 4 },
    { base: at, index: five },
  ];

  const nextTile = asm.here();
  for (let count = isa.tileTokens; count > 0; count--) {
    const [fewer, isFirst, hasSums] = [new Label(), new Label(), new Label()];
    asm.cmpImmediate(tokens, count);
    asm.jumpIf("below", fewer);
    const spare = Math.min(ROWS, isa.registers - (ROWS + 1) * count);
    const input = (token: number) => isa.vector(ROWS * count + token);
    const weights = (row: number) => isa.vector((ROWS + 1) * count + (row % spare));
    const sums = Array.from({ length: ROWS * count }, (_, i) => {
      const [row, token] = [i % ROWS, Math.floor(i / ROWS)];
      const place = { base: lanes, offset: (token * layout.PANEL_ROWS + row) * vectorBytes };
      return { place, sum: isa.vector(i) };
    });
    address(asm, at, layout.TILES_AHEAD_END);
    asm.movImmediate(w, CACHE_LINE);
    asm.movImmediate(aheadStep, 0);
    asm.cmp(ahead, at);
    asm.moveIf("below", aheadStep, w);
    asm.mov(rows, panel);
    const nextRows = asm.here();
    parameter(asm, at, layout.TILES_CONTINUE);
    asm.cmpImmediate(at, 0);
    asm.jumpIf("equal", isFirst);
    for (const { sum, place } of sums) asm.vmovups(sum, place);
    asm.jump(hasSums);
    asm.bind(isFirst);
    for (const { sum } of sums) asm.vpxor(sum, sum, sum);
    asm.bind(hasSums);
    asm.mov(at, x);
    asm.mov(w, rows);
    parameter(asm, wEnd, layout.TILES_BYTES);
    asm.add(wEnd, rows);
    const nextStep = asm.here();
    for (let token = 0; token < count; token++) asm.vmovups(input(token), inputs[token]!);
    for (let row = 0; row < ROWS; row++) {
      asm.vmovups(weights(row), { base: w, offset: row * layout.WIDE_STRIDE });
      for (let token = 0; token < count; token++)
        asm.vfmadd231ps(isa.vector(token * ROWS + row), weights(row), input(token));
    }
    asm.prefetch({ base: ahead });
    asm.add(ahead, aheadStep);
    asm.addImmediate(at, vectorBytes);
    asm.addImmediate(w, vectorBytes);
    asm.cmp(w, wEnd);
    asm.jumpIf("below", nextStep);
    for (const { sum, place } of sums) asm.vmovupsStore(place, sum);
    asm.addImmediate(lanes, ROWS * vectorBytes);
    asm.addImmediate(rows, ROWS * layout.WIDE_STRIDE);
    asm.lea(at, { base: panel, offset: layout.PANEL_ROWS * layout.WIDE_STRIDE });
    asm.cmp(rows, at);
    asm.jumpIf("below", nextRows);
    asm.addImmediate(lanes, (count - 1) * layout.PANEL_ROWS * vectorBytes);
    for (let token = 0; token < count; token++) asm.add(x, stride);
    asm.subImmediate(tokens, count);
    asm.jump(nextTile);
    asm.bind(fewer);
  }
}
