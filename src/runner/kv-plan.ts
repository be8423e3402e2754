import type { Backend } from "../backend/backend.ts";
import { formatByteCounts } from "../base/bytes.ts";
import type { EngineConfig } from "../base/config.ts";
import type { KvDType } from "../base/dtype.ts";
import { ConfigError, DeviceError } from "../base/errors.ts";
import { blocksOfSequence, tokensInPool } from "../base/kv-group.ts";
import type { CachedLayer } from "../models/kv-heads.ts";
import { kvBlockBytes } from "./kv-cache.ts";
import { type KvLayout, kvLayout } from "./kv-layout.ts";

/** KV pool where memory is the host's, unless `kvCacheMemoryBytes` says otherwise. */
const HOST_POOL_BYTES = 2 ** 30;
/** Share of the memory granted on a GPU that activations and batch state are assumed to leave, until measured. */
const POOL_SHARE_ESTIMATE = 0.8;
/** Share of the pool's memory that states of sequences take at most, where the model keeps any. */
const STATE_SHARE = 0.5;
/** Share that snapshots of states take, and how many are of use. */
const SNAPSHOT_SHARE = 0.1;
const MOST_SNAPSHOTS = 256;

/**
 * Memory of a GPU that is never given to the pool: what the driver takes later by itself, for captured steps, and for kernels of
 * cuBLASLt, which it loads when they are first launched.
 */
export const DRIVER_BYTES = 384 * 2 ** 20;

/** What a GPU of `total` bytes is assumed to have for the KV pool beside `used` bytes of weights. */
export function estimatedPool(total: number, used: number, gpuMemoryUtilization: number): number {
  const granted = Math.min(gpuMemoryUtilization * total - used, total - used - DRIVER_BYTES);
  return Math.max(0, POOL_SHARE_ESTIMATE * granted);
}

/** States of sequences beside a pool. */
export interface StatePlan {
  /** Sequences that can run at once; below 1: there is no room for a state and one that stands for padding. */
  readonly sequences: number;
  readonly snapshots: number;
  /** Bytes of the states of all sequences, of the one for padding, and of snapshots. */
  readonly bytes: number;
}

/**
 * The states that a pool of so many bytes has room for.
 * @param stateBytes bytes of a sequence's state; 0: it has none
 * @param maxNumSeqs sequences that are to run at once
 * @param areCached prefixes are, by snapshots of states
 */
export function planStates(
  pool: number,
  stateBytes: number,
  maxNumSeqs: number,
  areCached: boolean,
): StatePlan {
  if (stateBytes === 0) return { sequences: maxNumSeqs, snapshots: 0, bytes: 0 };
  const sequences = Math.min(maxNumSeqs, Math.floor((STATE_SHARE * pool) / stateBytes) - 1);
  const snapshots = areCached
    ? Math.min(MOST_SNAPSHOTS, Math.floor((SNAPSHOT_SHARE * pool) / stateBytes))
    : 0;
  return { sequences, snapshots, bytes: (sequences + 1 + snapshots) * stateBytes };
}

type Options = Pick<
  EngineConfig,
  "maxModelLen" | "maxNumSeqs" | "gpuMemoryUtilization" | "kvCacheMemoryBytes"
> &
  Partial<Pick<EngineConfig, "enablePrefixCaching">>;

/** The model's part of the pool's shape. */
export interface PoolShape {
  readonly layers: readonly CachedLayer[];
  readonly blockSize: number;
  readonly kvDtype: KvDType;
}

/** Block-table entries, and tokens of the pool, are numbered with an int32. */
const MAX_NUMBERED = 2 ** 31 - 1;

/** The plan of the KV pool, and of the states beside it: the length that sequences may have, and the numbers of blocks and states. */
export class KvPlan {
  readonly layout: KvLayout;
  /** Prompt plus output tokens that one sequence can have; when it is a default, as far as the pool holds them. */
  readonly maxModelLen: number;
  /** Sequences that can run at once: those asked for, as far as there is memory for their states. */
  readonly maxNumSeqs: number;
  /** Snapshots of states that prefixes are cached by; 0 for models without states. */
  readonly numSnapshots: number;
  readonly #blockBytes: number;
  readonly #statesBytes: number;

  /**
   * @param limit positions that the model was made for
   * @param stateBytes bytes of a sequence's state; 0: it has none
   * @throws ConfigError when `maxModelLen` exceeds what the model, the memory or the block tables hold.
   */
  constructor(
    limit: number,
    private readonly shape: PoolShape,
    private readonly options: Options,
    private readonly backend: Pick<Backend, "memory">,
    stateBytes = 0,
  ) {
    const asked = options.maxModelLen;
    if (asked !== undefined && asked > limit)
      throw new ConfigError("maxModelLen", `maxModelLen ${asked} exceeds the model's limit of ${limit}`);
    const { blockSize } = shape;
    this.layout = kvLayout(shape.layers, asked ?? limit);
    this.#blockBytes = kvBlockBytes({ ...shape, layout: this.layout });
    const pool = this.#poolBytes() * (this.#isMeasured ? POOL_SHARE_ESTIMATE : 1);
    const states = planStates(pool, stateBytes, options.maxNumSeqs, options.enablePrefixCaching === true);
    if (states.sequences < 1) throw this.#noState(stateBytes, pool);
    this.maxNumSeqs = states.sequences;
    this.numSnapshots = states.snapshots;
    this.#statesBytes = states.bytes;
    const estimate = pool - this.#statesBytes;
    const fits = this.#tokensIn(Math.floor(estimate / this.#blockBytes));
    this.maxModelLen = asked ?? Math.min(limit, fits);
    // On a GPU the estimate only picks a default: what is asked for is held against the measured pool.
    if (this.maxModelLen === 0 || (!this.#isMeasured && this.maxModelLen > fits)) throw this.#tooSmall(fits);
    const entries = this.#numGroups * (this.maxNumSeqs + 1) * Math.ceil(this.maxModelLen / blockSize);
    if (entries > MAX_NUMBERED) {
      const message = `block tables of ${entries} entries are too large: lower maxModelLen or maxNumSeqs, or raise blockSize`;
      throw new ConfigError("maxModelLen", message);
    }
  }

  /**
   * Blocks of the pool. On a GPU: what `gpuMemoryUtilization` of its memory leaves when everything else is allocated.
   * @throws DeviceError or ConfigError when one sequence of the `maxModelLen` asked for does not fit, naming what would,
   * or there is no room at all.
   */
  numBlocks(): number {
    const { blockSize } = this.shape;
    const { maxModelLen = 1 } = this.options;
    const parts = Math.max(...this.layout.groups.map((group) => group.parts));
    // The scratch block is one more.
    const numberable = Math.floor(MAX_NUMBERED / (blockSize * parts)) - 1;
    const blocks = Math.min(Math.floor(this.#blocksBytes() / this.#blockBytes), numberable);
    const fits = this.#tokensIn(blocks);
    if (fits < maxModelLen) throw this.#tooSmall(fits);
    const useful = this.#numGroups * Math.ceil(this.maxModelLen / blockSize) * this.maxNumSeqs;
    return this.#isMeasured ? blocks : Math.min(blocks, useful);
  }

  #noState(stateBytes: number, pool: number): Error {
    const [needed, available] = formatByteCounts(stateBytes, Math.floor(STATE_SHARE * pool));
    const facts = `a sequence's state takes ${needed}, and as much again for padding; there is room for ${available}`;
    return this.#isMeasured
      ? new DeviceError(`${facts}: raise gpuMemoryUtilization or free GPU memory`)
      : new ConfigError("kvCacheMemoryBytes", `${facts}: raise kvCacheMemoryBytes`);
  }

  get #isMeasured(): boolean {
    return this.backend.memory !== undefined && this.options.kvCacheMemoryBytes === undefined;
  }

  #poolBytes(): number {
    const { kvCacheMemoryBytes, gpuMemoryUtilization } = this.options;
    if (kvCacheMemoryBytes !== undefined) return kvCacheMemoryBytes;
    const memory = this.backend.memory?.();
    if (memory === undefined) return HOST_POOL_BYTES;
    const granted = gpuMemoryUtilization * memory.total - (memory.total - memory.free);
    return Math.max(0, Math.min(granted, memory.free - DRIVER_BYTES));
  }

  /** Bytes that states leave of the pool's memory. On a GPU they have been allocated when it is measured. */
  #blocksBytes(): number {
    return this.#poolBytes() - (this.#isMeasured ? 0 : this.#statesBytes);
  }

  get #numGroups(): number {
    return this.layout.groups.length;
  }

  /** Of the longest sequence that so many blocks hold. */
  #tokensIn(blocks: number): number {
    return tokensInPool(this.layout.groups, blocks, this.shape.blockSize);
  }

  #tooSmall(fits: number): Error {
    const { gpuMemoryUtilization } = this.options;
    const wanted = Math.max(this.maxModelLen, 1);
    const [needed, available] = formatByteCounts(
      blocksOfSequence(this.layout.groups, wanted, this.shape.blockSize) * this.#blockBytes,
      Math.floor(this.#blocksBytes()),
    );
    const facts = `a context of ${wanted} tokens needs ${needed} of KV cache, there is room for ${available}`;
    const instead = fits > 0 ? `, or set maxModelLen to ${fits} at most` : "";
    if (!this.#isMeasured)
      return new ConfigError("kvCacheMemoryBytes", `${facts}: raise kvCacheMemoryBytes${instead}`);
    const share = `gpuMemoryUtilization ${gpuMemoryUtilization}`;
    return new DeviceError(`${facts} within ${share}: raise it or free GPU memory${instead}`);
  }
}
