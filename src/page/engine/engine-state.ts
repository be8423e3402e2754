import type { EngineStats } from "../../base/engine-stats.ts";
import {
  entriesOf,
  RUNNING_FIELDS,
  type RunningSequence,
  WAITING_FIELDS,
  type WaitingSequence,
} from "../../base/engine-view.ts";
import { applyRuns } from "../../base/word-runs.ts";

/** The facts of an engine that stay as they are. */
export interface EngineFacts {
  readonly replica: number;
  readonly replicas: number;
  readonly blockSize: number;
  readonly numBlocks: number;
  /** Groups of layers; undefined: one. */
  readonly numGroups?: number;
  readonly maxNumSeqs: number;
  readonly maxNumBatchedTokens: number;
  readonly maxModelLen: number;
  readonly enablePrefixCaching: boolean;
  readonly model: string;
  readonly device: string;
  readonly dtype: string;
  readonly version: string;
}

/** The pool: its blocks, and whose layers they are for. */
export function describePool({ numBlocks, blockSize, numGroups }: EngineFacts): string {
  const groups = numGroups === undefined ? "" : `, each for one of ${numGroups} groups of layers`;
  return `${numBlocks} blocks of ${blockSize} tokens${groups}`;
}

export interface Quantiles {
  readonly count: number;
  readonly p50: number;
  readonly p99: number;
}

/** An engine at one time. */
export interface EngineState {
  readonly facts: EngineFacts;
  /** Seconds on the server's clock. */
  readonly time: number;
  readonly stats: EngineStats;
  readonly firstToken: Quantiles | null;
  readonly interToken: Quantiles | null;
  /** A word for each block. The list is the same each time. */
  readonly blocks: Uint32Array;
  readonly running: readonly RunningSequence[];
  readonly waiting: readonly WaitingSequence[];
  /** Of a sequence, the runs of blocks that it has from others: first block, number of blocks. */
  readonly shared: ReadonlyMap<number, readonly (readonly [first: number, count: number])[]>;
}

/** The numbers of a `view` event. */
export interface ViewEvent extends Pick<EngineState, "time" | "stats" | "firstToken" | "interToken"> {
  readonly blocks: string;
  readonly running: readonly number[];
  readonly waiting: readonly number[];
  readonly shared: readonly number[];
}

/** The state that an event tells of. @param blocks those of the event before, which become this one's. */
export function stateOf(event: ViewEvent, facts: EngineFacts, blocks: Uint32Array): EngineState {
  applyRuns(
    blocks,
    Uint8Array.from(atob(event.blocks), (letter) => letter.charCodeAt(0)),
  );
  const shared = new Map<number, [number, number][]>();
  for (let at = 0; at < event.shared.length; at += 3) {
    const [sequence, first, count] = event.shared.slice(at, at + 3) as [number, number, number];
    const runs = shared.get(sequence);
    if (runs) runs.push([first, count]);
    else shared.set(sequence, [[first, count]]);
  }
  const { time, stats, firstToken, interToken } = event;
  return {
    ...{ facts, time, stats, firstToken, interToken, blocks, shared },
    running: entriesOf(event.running, RUNNING_FIELDS),
    waiting: entriesOf(event.waiting, WAITING_FIELDS),
  };
}
