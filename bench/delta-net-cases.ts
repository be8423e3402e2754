import { channelsOf, type DeltaNetShape } from "../src/backend/delta-net.ts";
import type { CaseMemory, KernelCase } from "./kernel-case.ts";

/** Of Qwen3.5-35B-A3B, Qwen3-Next-80B-A3B and Qwen3.5-9B. */
const SHAPE: DeltaNetShape = {
  ...{ numKeyHeads: 16, numValueHeads: 32, keyDim: 128, valueDim: 128, convWidth: 4 },
};
const NAME = "35B-A3B";
const BYTES = 2;
const STATE_BYTES = 4;
/** Tokens whose products with each other a chunk has. */
const CHUNK = 64;
const CONTEXT = 1000;
const DECODE_ROWS = [1, 4, 8, 16, 64, 256];
const PROMPTS = [
  [64],
  [256],
  [2048],
  [16384],
  Array<number>(8).fill(2048),
  Array<number>(64).fill(256),
] as const satisfies readonly (readonly number[])[];

/** A layer's gated delta rule, in decode steps, in which states are what must be read and written, and of prompts. */
export function deltaNetCases(memory: CaseMemory): KernelCase[] {
  const { numValueHeads, keyDim, valueDim } = SHAPE;
  const [channels, values] = [channelsOf(SHAPE), numValueHeads * valueDim];
  const stateBytes = STATE_BYTES * values * keyDim;
  const make = (name: string, rows: readonly number[], isDecode: boolean): KernelCase => {
    const tokens = rows.reduce((sum, count) => sum + count, 0);
    const tokenBytes = BYTES * (channels + 2 * values);
    const bytes = rows.length * 2 * stateBytes + tokens * tokenBytes;
    const ofChunk = 2 * (CHUNK * (3 * keyDim + 2 * valueDim) + 3 * keyDim * valueDim);
    const layers = memory.coldSets(bytes);
    return {
      ...{ group: `delta rule ${NAME}`, name, bytes, operands: layers },
      flops: isDecode ? 0 : tokens * numValueHeads * ofChunk,
      prepare: () => launcher(memory, rows, isDecode, layers),
    };
  };
  return [
    ...DECODE_ROWS.map((count) => make(`${count} rows of a token`, Array<number>(count).fill(1), true)),
    ...PROMPTS.map((rows) => make(`${rows.length} × ${rows[0]} tokens`, rows, false)),
  ];
}

function launcher(memory: CaseMemory, rows: readonly number[], isDecode: boolean, layers: number) {
  const { backend } = memory;
  const { numValueHeads, keyDim, valueDim, convWidth } = SHAPE;
  const [channels, values, count] = [channelsOf(SHAPE), numValueHeads * valueDim, rows.length];
  const tokens = rows.reduce((sum, each) => sum + each, 0);
  const contexts = rows.map((each) => (isDecode ? CONTEXT : each));
  const batch = {
    ...{
      numTokens: tokens,
      numRows: count,
      decodeRows: isDecode ? count : 0,
      maxQueryLen: Math.max(...rows),
    },
    cuSeqlensQ: memory.ints(endsOf(rows)),
    contextLens: memory.ints(contexts),
    rowSlots: memory.ints(rows.map((_, row) => count - 1 - row)),
  };
  const projected = memory.random(tokens, channels + values);
  const out = memory.empty(backend.activationDtype, tokens, values);
  const gates = memory.zeros("float32", tokens, 2 * numValueHeads);
  const tails = memory.zeros(backend.activationDtype, count, layers, convWidth, channels);
  const states = memory.zeros("float32", count, layers, numValueHeads, keyDim, valueDim);
  const spec = {
    ...{ ...SHAPE, convolution: memory.random(channels, convWidth) },
    ...{ decayLog: memory.zeros("float32", numValueHeads), timeBias: memory.zeros("float32", numValueHeads) },
    norm: { weight: memory.ones(valueDim), eps: 1e-6 },
  };
  return (i: number) =>
    backend.deltaNet(out, projected, gates, { tails, states, layer: i % layers }, batch, spec);
}

/** Where rows of so many tokens begin, and where the last one ends. */
function endsOf(rows: readonly number[]): number[] {
  const ends = [0];
  for (const each of rows) ends.push(ends.at(-1)! + each);
  return ends;
}
