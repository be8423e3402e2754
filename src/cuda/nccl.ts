import type { FloatDType } from "../base/dtype.ts";
import { invariant } from "../base/errors.ts";
import type { Shard } from "../base/shard.ts";
import type { Context } from "./context.ts";
import { callNccl, checkNccl } from "./errors.ts";
import { OutPointer } from "./ffi.ts";
import { Handle } from "./handle.ts";
import { NCCL_SUM, type NcclApi, NcclStatus, NcclType, UNIQUE_ID_BYTES } from "./nccl-symbols.ts";

/** 22304 → `2.23.4`. */
export function ncclVersion(version: number): string {
  return [Math.floor(version / 10000), Math.floor((version % 10000) / 100), version % 100].join(".");
}

/** The bytes by which ranks find each other: one rank makes them, all of them pass them to `NcclComm.join`. */
export function ncclUniqueId(api: NcclApi): Uint8Array<ArrayBuffer> {
  const id = new Uint8Array(new ArrayBuffer(UNIQUE_ID_BYTES));
  callNccl(api, "ncclGetUniqueId", [id]);
  return id;
}

/** Calls ncclCommAbort on another thread. */
export type BeginAbort = (comm: number) => Aborting;

/** An ncclCommAbort on its way. */
export interface Aborting {
  /** Waits on this thread until it has returned, or for as long as one does in vain. */
  join(): void;
}

/**
 * One rank's end of a communicator, on the GPU of a primary context. Every rank makes the same calls in the same order. They
 * enqueue, and may be captured once each has run at its size.
 */
export class NcclComm extends Handle {
  readonly #asyncError = new Int32Array(new ArrayBuffer(4));
  #isAborted = false;
  #aborting: Aborting | undefined;

  private constructor(
    readonly api: NcclApi,
    value: number,
    context: Context,
    readonly shard: Shard,
  ) {
    super(value, context);
  }

  /** Waits on this thread until all ranks have called it, each on a thread whose current context is its own GPU's. */
  static join(api: NcclApi, context: Context, shard: Shard, id: Uint8Array<ArrayBuffer>): NcclComm {
    invariant(id.length === UNIQUE_ID_BYTES, `a unique id of ${id.length} bytes`);
    context.makeCurrent();
    const out = new OutPointer();
    const { rank, size } = shard;
    callNccl(api, "ncclCommInitRankScalable", [out.array, size, rank, 1, id, 0], `rank ${rank} of ${size}`);
    return new NcclComm(api, out.value, context, shard);
  }

  /** Device addresses: out[count] = the sum of every rank's input[count], the same bits on all of them; `out` may be `input`. */
  allReduce(out: number, input: number, count: number, dtype: FloatDType, stream: number): void {
    callNccl(this.api, "ncclAllReduce", [input, out, count, NcclType[dtype], NCCL_SUM, this.value, stream]);
  }

  /** Device addresses: out[ranks, words] = every rank's input[words], of 32 bits each. */
  allGather(out: number, input: number, words: number, stream: number): void {
    callNccl(this.api, "ncclAllGather", [input, out, words, NcclType.uint32, this.value, stream]);
  }

  /** @throws NcclError when a call that was enqueued has failed, here or at another rank as far as is known. Waits for nothing. */
  check(): void {
    callNccl(this.api, "ncclCommGetAsyncError", [this.value, this.#asyncError]);
    const status = this.#asyncError[0]!;
    if (status !== NcclStatus.inProgress) checkNccl(this.api, "ncclCommGetAsyncError", status);
  }

  /**
   * Ends what waits for other ranks, on the GPU too; nothing but disposal may follow. Safe to call twice.
   * @param begin calls ncclCommAbort elsewhere; by default this thread calls it. Where graphs use the communicator, it may return
   * only when all ranks' are gone.
   */
  abort(begin?: BeginAbort): void {
    if (this.#isAborted || this.isDisposed) return;
    this.#isAborted = true;
    if (begin === undefined) callNccl(this.api, "ncclCommAbort", [this.value]);
    else this.#aborting = begin(this.value);
  }

  /**
   * Whichever rank of a process comes last, having aborted or not, frees what all of them had, on every GPU: once the last one has
   * returned there is nothing left, and not before.
   */
  protected override release(value: number): void {
    if (!this.#isAborted) callNccl(this.api, "ncclCommDestroy", [value]);
    else this.#aborting?.join();
  }
}
