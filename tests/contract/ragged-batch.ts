import type { BatchTensors } from "../../src/backend/backend.ts";
import type { Tensor } from "../../src/backend/tensor.ts";
import type { Fixture } from "./fixture.ts";

/** Cached tokens after the step, and how many of them are this step's queries. */
export type RowShape = readonly [contextLen: number, queryLen: number];

/** A ragged batch over shuffled blocks and slots, as plain numbers. */
export interface RaggedBatch {
  readonly rows: readonly RowShape[];
  readonly blockSize: number;
  readonly numBlocks: number;
  readonly numSlots: number;
  readonly maxBlocks: number;
  readonly numTokens: number;
  readonly rowSlots: readonly number[];
  /** [numSlots, maxBlocks]; entries past a row's context name no block. */
  readonly blockTables: Int32Array;
  readonly cuSeqlensQ: readonly number[];
  readonly positions: readonly number[];
  readonly slotMapping: readonly number[];
}

/** An entry that no kernel may follow. */
const NO_BLOCK = 0x7fffffff;

export function raggedBatch(fixture: Fixture, rows: readonly RowShape[], blockSize: number): RaggedBatch {
  const { random } = fixture;
  const blocksOf = (contextLen: number) => Math.ceil(contextLen / blockSize);
  const numBlocks = rows.reduce((sum, [contextLen]) => sum + blocksOf(contextLen), 0) + 3;
  const maxBlocks = Math.max(...rows.map(([contextLen]) => blocksOf(contextLen))) + 2;
  const numSlots = rows.length + 2;
  const freeBlocks = random.permutation(numBlocks);
  const rowSlots = random.permutation(numSlots).slice(0, rows.length);
  const blockTables = new Int32Array(numSlots * maxBlocks).fill(NO_BLOCK);
  const cuSeqlensQ = [0];
  const positions: number[] = [];
  const slotMapping: number[] = [];
  for (const [i, [contextLen, queryLen]] of rows.entries()) {
    const table = blockTables.subarray(rowSlots[i]! * maxBlocks);
    for (let j = 0; j < blocksOf(contextLen); j++) table[j] = freeBlocks.pop()!;
    for (let p = contextLen - queryLen; p < contextLen; p++) {
      positions.push(p);
      slotMapping.push(table[Math.floor(p / blockSize)]! * blockSize + (p % blockSize));
    }
    cuSeqlensQ.push(positions.length);
  }
  return {
    rows,
    blockSize,
    numBlocks,
    numSlots,
    maxBlocks,
    numTokens: positions.length,
    rowSlots,
    blockTables,
    cuSeqlensQ,
    positions,
    slotMapping,
  };
}

/** What the host knows of the batch. */
export function extentsOf({ rows, numTokens, blockSize }: RaggedBatch) {
  const prefill = rows.findIndex(([, queryLen]) => queryLen !== 1);
  return {
    numTokens,
    numRows: rows.length,
    blockSize,
    decodeRows: prefill < 0 ? rows.length : prefill,
    maxQueryLen: Math.max(...rows.map(([, queryLen]) => queryLen)),
  };
}

/** The batch on the device. */
export function batchTensors(fixture: Fixture, batch: RaggedBatch): BatchTensors & { tokenIds: Tensor } {
  return {
    ...extentsOf(batch),
    tokenIds: fixture.ints(Array(batch.numTokens).fill(0)),
    positions: fixture.ints(batch.positions),
    slotMapping: fixture.ints(batch.slotMapping),
    cuSeqlensQ: fixture.ints(batch.cuSeqlensQ),
    contextLens: fixture.ints(batch.rows.map(([contextLen]) => contextLen)),
    rowSlots: fixture.ints(batch.rowSlots),
    blockTables: fixture.ints(batch.blockTables, [batch.numSlots, batch.maxBlocks]),
  };
}
