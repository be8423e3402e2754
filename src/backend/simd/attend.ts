import * as layout from "../../../kernels-wasm/layout.ts";
import { type AttentionSpec, projectedHeads } from "../attention-spec.ts";
import type { LayerCache } from "../backend.ts";
import type { Tensor } from "../tensor.ts";
import type { AttendShape, Contexts, Runs } from "./contexts.ts";
import { knows, type Operands } from "./operands.ts";
import type { Arguments, ThreadPool } from "./thread-pool.ts";

/** Tokens of a row that one unit attends with, at most. */
const RUN_TOKENS = 8;
/** Bytes of a thread's scratch memory for the states of a unit's queries. */
const STATE_BYTES = 2 ** 18;
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

/** `Backend.attend`, of contexts that were checked. @param decodes their runs, where they are listed already */
export function attend(
  pool: ThreadPool,
  operands: Operands,
  out: Tensor,
  qkv: Tensor,
  cache: LayerCache,
  spec: AttentionSpec,
  { tokens, blockSize, rotaryDim }: AttendShape,
  contexts: Contexts,
  decodes?: Runs,
): void {
  const { place } = operands;
  const { keys, values, keyScale = 1, valueScale = 1 } = cache;
  const { numHeads, numKvHeads, headDim, headNorm, cosSin, queryScales, scale, softCap, sinks, window } =
    spec;
  const { batch } = contexts;
  const isFloat8 = keys.dtype === "float8_e4m3";
  const stateBytes = (numHeads / numKvHeads) * (32 + 4 * headDim);
  const runTokens = Math.min(RUN_TOKENS, Math.floor(STATE_BYTES / stateBytes));
  contexts.addCache(cache);
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
    const runs = decodes ?? contexts.list({ first, end, runTokens });
    const projections = operands.read("qkv", qkv.rows(first, end));
    const result = operands.write("out", out.rows(first, end));
    pool.run(place, {
      kernel: layout.ATTEND,
      units: runs.count * numKvHeads,
      work: () => runs.contexts() * numHeads * headDim,
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
