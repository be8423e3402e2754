import * as layout from "../../../kernels-wasm/layout.ts";
import { invariant } from "../../base/errors.ts";
import { type AttentionSpec, projectedHeads } from "../attention-spec.ts";
import type { BatchTensors, LayerCache } from "../backend.ts";
import { blockTableOf } from "../cpu/attention.ts";
import { PADDING } from "../cpu/batch.ts";
import { ints } from "../cpu/host-buffer.ts";
import { hostBatch } from "../cpu/host-views.ts";
import type { Tensor } from "../tensor.ts";
import { knows, type Operands } from "./operands.ts";
import type { Arguments, ThreadPool } from "./thread-pool.ts";

/** Tokens of a row that one unit attends with, at most. */
const RUN_TOKENS = 8;
/** Bytes of a thread's scratch memory for the states of a unit's queries. */
const STATE_BYTES = 2 ** 18;
/** Words of a run; see kernels-wasm/attend.ts. */
const RUN_WORDS = 4;
const WORD_BYTES = 4;

/** The fields of a spec that kernels know. */
const KNOWN: ReadonlySet<string> = new Set<keyof AttentionSpec>([
  ...(["numHeads", "numKvHeads", "headDim", "headNorm", "cosSin", "scale", "window"] as const),
  ...(["queryScales", "softCap", "sinks", "readsOnly"] as const),
]);

/** The kernels have what this attention needs; what they do not know, they must not ignore. */
export function canAttend({ keys, values }: LayerCache, spec: AttentionSpec): boolean {
  if (!knows(spec, KNOWN)) return false;
  const { numHeads, numKvHeads, headDim } = spec;
  const stateBytes = (numHeads / numKvHeads) * (32 + 4 * headDim);
  return (
    headDim % (keys.dtype === "float8_e4m3" ? 16 : 4) === 0 &&
    headDim <= 512 &&
    stateBytes <= STATE_BYTES &&
    keys.dtype === values.dtype
  );
}

/** The sizes that a check of `Backend.attend` finds. */
export interface AttendShape {
  readonly tokens: number;
  readonly blocks: number;
  readonly blockSize: number;
  readonly rotaryDim: number;
  readonly maxBlocks: number;
}

/** `Backend.attend`. */
export function attend(
  pool: ThreadPool,
  operands: Operands,
  out: Tensor,
  qkv: Tensor,
  { keys, values, keyScale = 1, valueScale = 1 }: LayerCache,
  batch: BatchTensors,
  spec: AttentionSpec,
  shape: AttendShape,
): void {
  const { place } = operands;
  const { numHeads, numKvHeads, headDim, headNorm, cosSin, queryScales, scale, softCap, sinks, window } =
    spec;
  const { tokens, blocks, blockSize, rotaryDim, maxBlocks } = shape;
  const rows = { ...hostBatch(batch), blockTables: ints(batch.blockTables), maxBlocks };
  checkTokens(rows, blocks * blockSize, [cosSin, queryScales]);
  const isFloat8 = keys.dtype === "float8_e4m3";
  const stateBytes = (numHeads / numKvHeads) * (32 + 4 * headDim);
  const runTokens = Math.min(RUN_TOKENS, Math.floor(STATE_BYTES / stateBytes));
  const [positions, slots] = [
    operands.read("positions", batch.positions),
    operands.read("slots", batch.slotMapping),
  ];
  const [angles, scales] = [
    operands.optional("cosSin", cosSin),
    operands.optional("query scales", queryScales),
  ];
  const sinkLogits = operands.optional("sinks", sinks);
  const [queryNorm, keyNorm] = [
    operands.optional("query norm", headNorm?.query),
    operands.optional("key norm", headNorm?.key),
  ];
  const [keyCache, valueCache] = [operands.read("keys", keys), operands.read("values", values)];
  const writeCommon = (args: Arguments, projections: number, results: number) => {
    args.words(0, projections, results, numHeads, numKvHeads, headDim);
    args.words(5, keyCache, valueCache, blockSize, Number(isFloat8));
  };
  const atATime = operands.rowsAtATime(qkv, out);
  for (let first = 0; first < tokens; first += atATime) {
    const end = Math.min(first + atATime, tokens);
    const projections = operands.change("qkv", qkv.rows(first, end));
    pool.run(place, {
      kernel: layout.ROTATE_AND_STORE,
      units: end - first,
      work: (end - first) * projectedHeads(spec) * headDim,
      write: (args) => {
        writeCommon(args, projections.address, 0);
        args.words(9, positions + WORD_BYTES * first, slots + WORD_BYTES * first);
        args.words(11, angles, rotaryDim, queryNorm, keyNorm, scales);
        args.double(16, headNorm?.eps ?? 0);
        args.double(18, keyScale);
        args.double(20, valueScale);
        args.words(30, Number(spec.readsOnly ?? false), Number(headNorm?.normsValues ?? false));
      },
    });
    projections.done();
  }
  for (let first = 0; first < tokens; first += atATime) {
    const end = Math.min(first + atATime, tokens);
    const runs = listRuns(operands, rows, { blocks, blockSize }, { first, end, runTokens }, window);
    const projections = operands.read("qkv", qkv.rows(first, end));
    const result = operands.write("out", out.rows(first, end));
    pool.run(place, {
      kernel: layout.ATTEND,
      units: runs.count * numKvHeads,
      work: runs.contexts * numHeads * headDim,
      write: (args) => {
        writeCommon(args, projections, result.address);
        args.words(24, window);
        args.float(25, scale * keyScale);
        args.float(26, valueScale);
        args.words(27, runs.address);
        args.float(28, softCap ?? 0);
        args.words(29, sinkLogits, Number(spec.readsOnly ?? false));
        args.words(layout.DOTS, ...assembledFor(pool, headDim));
      },
    });
    result.done();
  }
}

/** Routines of assembled code for heads of this size, 0 for none. */
function assembledFor({ code }: ThreadPool, headDim: number): [dots: number, weighted: number] {
  if (code === undefined || headDim % code.products.isa.lanes !== 0) return [0, 0];
  return [code.products.dots, code.products.weighted];
}

type Rows = Parameters<typeof blockTableOf>[0];

/** @throws InvariantError for a position without angles or a scale, or a place that the cache does not have */
function checkTokens(
  { positions, slotMapping }: Rows,
  cacheSlots: number,
  tables: readonly (Tensor | undefined)[],
): void {
  const known = Math.min(...tables.map((table) => table?.dim(0) ?? Infinity));
  for (let t = 0; t < positions.length; t++) {
    const position = positions[t]!;
    if (!(0 <= position && position < known))
      invariant(false, `attend: position ${position} is outside tables of ${known} positions`);
    const slot = slotMapping[t]!;
    if (!(slot === PADDING || (0 <= slot && slot < cacheSlots)))
      invariant(false, `attend: cache slot ${slot}`);
  }
}

/** Tokens [first, end) of a batch, and how many of a row one unit attends with at most. */
interface Part {
  readonly first: number;
  readonly end: number;
  readonly runTokens: number;
}

/**
 * Cuts the rows' tokens in a part of the batch into runs that units attend with, by their distance from the first, and writes them and the
 * rows' block tables to scratch memory.
 */
function listRuns(
  { place }: Operands,
  rows: Rows,
  cache: { readonly blocks: number; readonly blockSize: number },
  part: Part,
  window: number,
): { readonly address: number; readonly count: number; readonly contexts: number } {
  const { cuSeqlensQ, contextLens } = rows;
  const tables = Array.from(contextLens, (_, row) => blockTableOf(rows, row, cache, window));
  const words = tables.reduce((sum, { length }) => sum + length, 0);
  let at = place.scratch("block tables", 4 * words);
  const runs: number[] = [];
  let contexts = 0;
  const memory = new Int32Array(place.bytes, at, words);
  for (let row = 0, offset = 0; row < tables.length; row++) {
    const table = tables[row]!;
    memory.set(table, offset);
    offset += table.length;
    const rowEnd = cuSeqlensQ[row + 1]!;
    const end = Math.min(rowEnd, part.end);
    for (let token = Math.max(cuSeqlensQ[row]!, part.first); token < end; token += part.runTokens) {
      const count = Math.min(part.runTokens, end - token);
      runs.push(at, token - part.first, count, contextLens[row]! - (rowEnd - token));
      contexts += count * contextLens[row]!;
    }
    at += 4 * table.length;
  }
  const address = place.scratch("runs", 4 * runs.length);
  new Int32Array(place.bytes, address, runs.length).set(runs);
  return { address, count: runs.length / RUN_WORDS, contexts };
}
