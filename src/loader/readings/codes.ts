import type { CodesReading } from "../../base/reading.ts";
import { lengthOf, type Span } from "../../base/shard.ts";
import { visitBands } from "./band.ts";
import { byteMatrix, type StoredTensor } from "./stored-tensor.ts";

/** See `CodesReading`. */
export function readCodes(tensor: StoredTensor, reading: CodesReading, rows: Span, target: Uint8Array): void {
  const { bits, along, transposed, columns } = reading;
  const perWord = 32 / bits;
  const matrix = {
    start: reading.rows.start + rows.start,
    end: reading.rows.start + rows.end,
  };
  const wordRows = along === "column" ? inWords(matrix, perWord) : matrix;
  const wordColumns = along === "row" ? inWords(columns, perWord) : columns;
  const [outer, inner] = transposed ? [wordColumns, wordRows] : [wordRows, wordColumns];
  const write = isWordwise(reading)
    ? transposeWords(target, reading, matrix.start)
    : unpack(target, reading, matrix);
  const squares = hasSquares(reading, matrix);
  const bytes = { start: 4 * inner.start, end: 4 * inner.end };
  visitBands(byteMatrix(tensor, 4), outer, bytes, (band, stored) => {
    const words = new Uint32Array(band.buffer, band.byteOffset, band.length / 4);
    if (squares && lengthOf(stored) % SIDE === 0) {
      transposeSquares(words, lengthOf(inner), target, reading, stored.start);
      return;
    }
    for (let o = stored.start, i = 0; i < words.length; o++) {
      for (let w = inner.start; w < inner.end; w++, i++) {
        if (transposed) write(words[i]!, w, o);
        else write(words[i]!, o, w);
      }
    }
  });
}

/** Codes of 4 bits in a word. */
const SIDE = 8;

/** True if words of 8 rows' neighbours become words of 8 columns' neighbours, 8 × 8 codes at a time. */
function hasSquares(
  { bits, along, transposed, columns, add, permutation, packed }: CodesReading,
  rows: Span,
): boolean {
  const aligned = [rows.start, rows.end, columns.start, columns.end].every((at) => at % SIDE === 0);
  const isPlain = packed && !add && permutation === undefined;
  return bits === 4 && along === "column" && transposed && aligned && isPlain;
}

/** @param words of columns from `firstColumn` on, so many of each */
function transposeSquares(
  words: Uint32Array,
  wordsOfColumn: number,
  target: Uint8Array,
  { columns, order }: CodesReading,
  firstColumn: number,
): void {
  const out = new Uint32Array(target.buffer, target.byteOffset, target.length / 4);
  const width = lengthOf(columns) / SIDE;
  const places = order ?? [0, 1, 2, 3, 4, 5, 6, 7];
  const squares = words.length / (SIDE * wordsOfColumn);
  for (let square = 0; square < squares; square++) {
    const at = square * SIDE * wordsOfColumn;
    const column = (firstColumn - columns.start) / SIDE + square;
    for (let w = 0; w < wordsOfColumn; w++) {
      const a = words[at + w]!;
      const b = words[at + w + wordsOfColumn]!;
      const c = words[at + w + 2 * wordsOfColumn]!;
      const d = words[at + w + 3 * wordsOfColumn]!;
      const e = words[at + w + 4 * wordsOfColumn]!;
      const f = words[at + w + 5 * wordsOfColumn]!;
      const g = words[at + w + 6 * wordsOfColumn]!;
      const h = words[at + w + 7 * wordsOfColumn]!;
      for (let i = 0; i < SIDE; i++) {
        const shift = 4 * i;
        const low = ((a >>> shift) & 15) | (((b >>> shift) & 15) << 4) | (((c >>> shift) & 15) << 8);
        const middle = (((d >>> shift) & 15) << 12) | (((e >>> shift) & 15) << 16);
        const high = (((f >>> shift) & 15) << 20) | (((g >>> shift) & 15) << 24) | ((h >>> shift) << 28);
        out[(w * SIDE + places[i]!) * width + column] = low | middle | high;
      }
    }
  }
}

/** Writes the codes of a word, whose place among words is given, to where they belong. */
type WriteWord = (word: number, row: number, column: number) => void;

/** True if a word's codes stay together, in their order. */
function isWordwise({ bits, along, columns, order, add, permutation, packed }: CodesReading): boolean {
  const perWord = 32 / bits;
  const aligned = columns.start % perWord === 0 && columns.end % perWord === 0;
  const whole = packed || bits === 8;
  return whole && along === "row" && aligned && !add && order === undefined && permutation === undefined;
}

function transposeWords(target: Uint8Array, { bits, columns }: CodesReading, firstRow: number): WriteWord {
  const out = new Uint32Array(target.buffer, target.byteOffset, target.length / 4);
  const width = (lengthOf(columns) * bits) / 32;
  const base = -firstRow * width - (columns.start * bits) / 32;
  return (word, row, column) => {
    out[base + row * width + column] = word;
  };
}

function unpack(target: Uint8Array, reading: CodesReading, { start, end }: Span): WriteWord {
  const { bits, along, columns, order, add = 0, permutation, packed } = reading;
  const perWord = 32 / bits;
  const mask = 2 ** bits - 1;
  const isColumn = along === "column";
  const halved = packed && bits === 4;
  const width = lengthOf(columns);
  const rowBytes = halved ? width / 2 : width;
  const places = order ?? Array.from({ length: perWord }, (_, i) => i);
  const inverse = permutation && inverseOf(permutation);
  target.fill(0);
  return (word, row, column) => {
    for (let i = 0; i < perWord; i++) {
      const place = places[i]!;
      const n = isColumn ? row * perWord + place : row;
      const stored = (isColumn ? column : column * perWord + place) - columns.start;
      if (n < start || n >= end || stored < 0 || stored >= width) continue;
      const code = ((word >>> (i * bits)) + add) & mask;
      const j = inverse === undefined ? stored : inverse[stored]!;
      const at = (n - start) * rowBytes;
      if (halved) target[at + (j >> 1)]! |= code << ((j & 1) << 2);
      else target[at + j] = code;
    }
  };
}

/** Words that hold the codes of a span. */
function inWords({ start, end }: Span, perWord: number): Span {
  return { start: Math.floor(start / perWord), end: Math.ceil(end / perWord) };
}

function inverseOf(permutation: Int32Array): Int32Array {
  const inverse = new Int32Array(permutation.length);
  for (const [j, stored] of permutation.entries()) inverse[stored] = j;
  return inverse;
}
