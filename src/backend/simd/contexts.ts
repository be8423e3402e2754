import { invariant } from "../../base/errors.ts";
import type { AttentionSpec } from "../attention-spec.ts";
import type { BatchTensors, LayerCache } from "../backend.ts";
import { blockTableOf, type RaggedRows } from "../cpu/attention.ts";
import { PADDING } from "../cpu/batch.ts";
import { ints } from "../cpu/host-buffer.ts";
import { hostBatch } from "../cpu/host-views.ts";
import type { Tensor } from "../tensor.ts";
import type { Operands } from "./operands.ts";
import { PlacedPool } from "./place.ts";

/** Words of a run; see kernels-wasm/attend.ts. */
const RUN_WORDS = 4;
const WORD_BYTES = 4;

/** The sizes that a check of `Backend.attend` finds. */
export interface AttendShape {
  readonly tokens: number;
  readonly blocks: number;
  readonly blockSize: number;
  readonly rotaryDim: number;
  readonly maxBlocks: number;
}

/** Runs of tokens that units attend with, written to scratch memory. */
export interface Runs {
  readonly address: number;
  readonly count: number;
  /** Positions that all their tokens see, or more. */
  contexts(): number;
}

/** Tokens [first, end) of a batch, and how many of a row one unit attends with at most. */
export interface Part {
  readonly first: number;
  readonly end: number;
  readonly runTokens: number;
}

/**
 * The contexts of a batch's rows as layers of one form see them. What the batch holds is read when they are checked and when runs are
 * listed; the tensors, and where they are, stay.
 */
export class Contexts {
  readonly #rows: RaggedRows;
  /** Address of the block tables; undefined where they lie elsewhere. */
  readonly #tables: number | undefined;
  /** Positions that have angles, and a scale where queries are scaled. */
  readonly #known: number;
  /** Caches of the layers that see these contexts; layers may share one. */
  readonly #pools = new Set<PlacedPool>();
  #cachedTokens = 0;

  constructor(
    private readonly operands: Operands,
    readonly batch: BatchTensors,
    readonly spec: AttentionSpec,
    private readonly shape: AttendShape,
  ) {
    this.#rows = {
      ...hostBatch(batch),
      blockTables: ints(batch.blockTables),
      maxBlocks: shape.maxBlocks,
    };
    const { blockTables } = batch;
    this.#tables = operands.has(blockTables) ? blockTables.address : undefined;
    const tables: readonly (Tensor | undefined)[] = [spec.cosSin, spec.queryScales];
    this.#known = Math.min(...tables.map((table) => table?.dim(0) ?? Infinity));
  }

  /** Whether a layer with this spec, and a cache of this shape, sees the same ones. */
  areOf(batch: BatchTensors, { window, cosSin, queryScales }: AttentionSpec, shape: AttendShape): boolean {
    return (
      batch === this.batch &&
      window === this.spec.window &&
      cosSin === this.spec.cosSin &&
      queryScales === this.spec.queryScales &&
      shape.blocks === this.shape.blocks &&
      shape.blockSize === this.shape.blockSize
    );
  }

  /** @throws InvariantError for a position without angles or a scale, or a place that the cache does not have */
  check(): void {
    const { positions, slotMapping, contextLens } = this.#rows;
    const { blocks, blockSize } = this.shape;
    for (let t = 0; t < positions.length; t++) {
      const position = positions[t]!;
      if (!(0 <= position && position < this.#known))
        invariant(false, `attend: position ${position} is outside tables of ${this.#known} positions`);
      const slot = slotMapping[t]!;
      if (!(slot === PADDING || (0 <= slot && slot < blocks * blockSize)))
        invariant(false, `attend: cache slot ${slot}`);
    }
    this.#cachedTokens = 0;
    for (let row = 0; row < contextLens.length; row++) {
      blockTableOf(this.#rows, row, this.shape, this.spec.window);
      this.#cachedTokens += contextLens[row]!;
    }
    for (const pool of this.#pools) this.#hold(pool);
  }

  /** A layer's keys and values are of these contexts: its cache is told how much of it is in use, now and at each check. */
  addCache({ keys: { buffer } }: LayerCache): void {
    if (!(buffer instanceof PlacedPool)) return;
    this.#pools.add(buffer);
    this.#hold(buffer);
  }

  #hold(pool: PlacedPool): void {
    const { blocks, blockSize } = this.shape;
    pool.holds((this.#cachedTokens * pool.byteLength) / (blocks * blockSize));
  }

  /** Cuts the rows' tokens in a part of the batch into runs, by their distance from the row's first, and writes them down. */
  list({ first, end, runTokens }: Part): Runs {
    const { cuSeqlensQ, contextLens } = this.#rows;
    const tables = this.#tables === undefined ? this.#copyTables() : undefined;
    const runs: number[] = [];
    let contexts = 0;
    for (let row = 0; row < contextLens.length; row++) {
      const rowEnd = cuSeqlensQ[row + 1]!;
      const last = Math.min(rowEnd, end);
      for (let token = Math.max(cuSeqlensQ[row]!, first); token < last; token += runTokens) {
        const count = Math.min(runTokens, last - token);
        const table = tables?.[row] ?? this.#tableOf(row);
        runs.push(table, token - first, count, contextLens[row]! - (rowEnd - token));
        contexts += count * contextLens[row]!;
      }
    }
    const address = this.operands.scratch("runs", WORD_BYTES * runs.length);
    new Int32Array(this.operands.place.bytes, address, runs.length).set(runs);
    return { address, count: runs.length / RUN_WORDS, contexts: () => contexts };
  }

  /**
   * The runs of a batch whose rows have one token each, and whose tables lie in the place. They are in scratch memory called `name`,
   * which nothing else of the step uses: `list` checks the batch, and writes them there for what it holds by then.
   */
  ofDecodes(name: string): Runs & { list(): void } {
    const { tokens } = this.shape;
    const { place } = this.operands;
    const address = this.operands.scratch(name, WORD_BYTES * RUN_WORDS * tokens);
    const memory = new Int32Array(place.bytes, address, RUN_WORDS * tokens);
    const { contextLens } = this.#rows;
    return {
      ...{ address, count: tokens, contexts: () => this.#cachedTokens },
      list: () => {
        this.check();
        for (let row = 0; row < tokens; row++) {
          memory[RUN_WORDS * row] = this.#tableOf(row);
          memory[RUN_WORDS * row + 1] = row;
          memory[RUN_WORDS * row + 2] = 1;
          memory[RUN_WORDS * row + 3] = contextLens[row]! - 1;
        }
      },
    };
  }

  #tableOf(row: number): number {
    return this.#tables! + WORD_BYTES * this.#rows.rowSlots[row]! * this.#rows.maxBlocks;
  }

  /** Addresses of copies of the rows' block tables. */
  #copyTables(): readonly number[] {
    const { contextLens } = this.#rows;
    const tables = Array.from(contextLens, (_, row) =>
      blockTableOf(this.#rows, row, this.shape, this.spec.window),
    );
    const words = tables.reduce((sum, { length }) => sum + length, 0);
    const address = this.operands.scratch("block tables", WORD_BYTES * words);
    const memory = new Int32Array(this.operands.place.bytes, address, words);
    let offset = 0;
    return tables.map((table) => {
      memory.set(table, offset);
      offset += table.length;
      return address + WORD_BYTES * (offset - table.length);
    });
  }
}
