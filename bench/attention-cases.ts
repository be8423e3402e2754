import type { AttentionSpec } from "../src/backend/attention-spec.ts";
import type { BatchTensors, LayerCache } from "../src/backend/backend.ts";
import type { Tensor } from "../src/backend/tensor.ts";
import { dtypeSize, type KvDType } from "../src/base/dtype.ts";
import { rotaryTable } from "../src/layers/rotary.ts";
import type { CaseMemory, KernelCase } from "./kernel-case.ts";
import { sum } from "./stats.ts";

/** Heads of an attention layer. */
export interface AttentionHeads {
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  /** Of keys and values. Default: that of activations. */
  readonly kvDtype?: KvDType;
}

/** Tokens of a KV block: the engine's default. */
export const BLOCK_SIZE = 16;
const BYTES = 2;
const NORM_EPS = 1e-6;
const ROPE = { theta: 1e6, partialRotaryFactor: 1, scaling: { kind: "none" } } as const;

/**
 * `Backend.attend` of a decode step: one query a row, over contexts of these lengths in shuffled blocks. Each row's keys
 * and values are read once; norm, rotation and the store of the new token are in the time and not in the bytes.
 */
export function decodeCase(
  memory: CaseMemory,
  group: string,
  name: string,
  heads: AttentionHeads,
  contextLens: readonly number[],
): KernelCase {
  const tokenBytes = 2 * heads.numKvHeads * heads.headDim * elementBytes(heads);
  const tokens = sum(contextLens);
  const operands = memory.coldSets(tokens * tokenBytes);
  return {
    ...{ group, name, operands },
    bytes: tokens * tokenBytes,
    flops: 4 * tokens * heads.numHeads * heads.headDim,
    prepare: () =>
      attendLauncher(
        memory,
        heads,
        contextLens,
        contextLens.map(() => 1),
        operands,
      ),
  };
}

/**
 * `Backend.attend` of one whole prompt: each token sees those before it. With a window of 1 it sees itself alone, so that
 * hardly more is left than norm, rotation and store, which are part of the time of any prompt.
 */
export function prefillCase(
  memory: CaseMemory,
  group: string,
  heads: AttentionHeads,
  length: number,
  window = 0,
): KernelCase {
  const { numHeads, numKvHeads, headDim } = heads;
  const operands = 2;
  return {
    ...{ group, name: `${window === 0 ? "" : `window of ${window}, `}${length} tokens`, operands },
    // Queries, keys and values are read and written once, and the result is written.
    bytes:
      length * ((3 * numHeads + 2 * numKvHeads) * BYTES + 2 * numKvHeads * elementBytes(heads)) * headDim,
    flops: (window === 0 ? 2 * length ** 2 : 4 * length * window) * headDim * numHeads,
    prepare: () => attendLauncher(memory, heads, [length], [length], operands, window),
  };
}

/** The operands of `Backend.attend`, with several caches to take in turn. */
export interface AttentionOperands {
  readonly out: Tensor;
  /** The projections [tokens, (NQ + 2·NKV)·D]. */
  readonly qkv: Tensor;
  readonly caches: readonly LayerCache[];
  readonly batch: BatchTensors;
  readonly spec: AttentionSpec;
}

/** Enqueues attention of rows with so many query tokens, at the ends of their contexts, on one of several caches. */
function attendLauncher(
  memory: CaseMemory,
  heads: AttentionHeads,
  contextLens: readonly number[],
  queryLens: readonly number[],
  operands: number,
  window = 0,
): (i: number) => void {
  const { backend } = memory;
  const { out, qkv, caches, batch, spec } = attentionOperands(
    memory,
    heads,
    contextLens,
    queryLens,
    operands,
  );
  const { headDim } = heads;
  const turned: AttentionSpec = {
    ...{ ...spec, window },
    cosSin: memory.keep(rotaryTable(backend, headDim, Math.max(...contextLens), ROPE)),
    headNorm: { query: memory.ones(headDim), key: memory.ones(headDim), eps: NORM_EPS },
  };
  return (i) => backend.attend(out, qkv, caches[i % operands]!, batch, turned);
}

/**
 * Rows with so many query tokens, at the ends of their contexts, in shuffled blocks. Without norm, rotation and window.
 */
export function attentionOperands(
  memory: CaseMemory,
  { numHeads, numKvHeads, headDim, kvDtype }: AttentionHeads,
  contextLens: readonly number[],
  queryLens: readonly number[],
  operands: number,
): AttentionOperands {
  const { backend } = memory;
  const rows = contextLens.length;
  const blocksOf = contextLens.map((length) => Math.ceil(length / BLOCK_SIZE));
  const maxBlocks = Math.max(...blocksOf);
  const order = shuffled(sum(blocksOf));
  const [tables, positions, slotMapping] = [new Int32Array(rows * maxBlocks), [] as number[], [] as number[]];
  const cuSeqlensQ = [0];
  let next = 0;
  for (const [row, length] of contextLens.entries()) {
    const blocks = order.subarray(next, next + blocksOf[row]!);
    next += blocks.length;
    tables.set(blocks, row * maxBlocks);
    for (let position = length - queryLens[row]!; position < length; position++) {
      positions.push(position);
      slotMapping.push(blocks[Math.floor(position / BLOCK_SIZE)]! * BLOCK_SIZE + (position % BLOCK_SIZE));
    }
    cuSeqlensQ.push(positions.length);
  }
  const numTokens = positions.length;
  const batch: BatchTensors = {
    ...{ numTokens, numRows: rows, blockSize: BLOCK_SIZE, maxQueryLen: Math.max(...queryLens) },
    decodeRows: queryLens.filter((count) => count === 1).length,
    tokenIds: memory.zeros("int32", numTokens),
    positions: memory.ints(positions),
    slotMapping: memory.ints(slotMapping),
    cuSeqlensQ: memory.ints(cuSeqlensQ),
    contextLens: memory.ints(contextLens),
    rowSlots: memory.ints(Int32Array.from({ length: rows }, (_, row) => row)),
    blockTables: memory.ints(tables, rows, maxBlocks),
  };
  const spec = { numHeads, numKvHeads, headDim, scale: 1 / Math.sqrt(headDim), window: 0 };
  const qkv = memory.random(numTokens, (numHeads + 2 * numKvHeads) * headDim);
  const out = memory.empty(backend.activationDtype, numTokens, numHeads * headDim);
  const blocks = [order.length, numKvHeads, BLOCK_SIZE, headDim];
  const pool = () => (kvDtype === "float8_e4m3" ? memory.randomFloat8(...blocks) : memory.random(...blocks));
  const caches = Array.from({ length: operands }, (): LayerCache => ({ keys: pool(), values: pool() }));
  return { out, qkv, caches, batch, spec };
}

function elementBytes({ kvDtype }: AttentionHeads): number {
  return kvDtype === undefined ? BYTES : dtypeSize(kvDtype);
}

/** Whole numbers below `count` in an order without runs, the same every time. */
function shuffled(count: number): Int32Array {
  const order = Int32Array.from({ length: count }, (_, i) => i);
  let state = 1;
  for (let i = count - 1; i > 0; i--) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    const j = Math.floor((state / 2 ** 32) * (i + 1));
    [order[i], order[j]] = [order[j]!, order[i]!];
  }
  return order;
}
