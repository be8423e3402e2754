import { type Pointer, toArrayBuffer } from "bun:ffi";
import { type NcclApi, NcclStatus, NcclType, ncclSymbols } from "../../../src/cuda/nccl-symbols.ts";

interface FakeComm {
  readonly rank: number;
  readonly group: FakeGroup;
}

/** The ranks of a communicator, and what those that came first have asked for. */
interface FakeGroup {
  readonly size: number;
  waiting: { readonly send: number; readonly receive: number; readonly what: string }[];
}

/**
 * NCCL in host memory, for ranks that take turns on one thread: an exchange happens when its last rank asks for it. Sums are of
 * float32. It keeps what is alive, and fails on request.
 */
export class FakeNccl {
  readonly calls: string[] = [];
  readonly live = new Map<number, FakeComm>();
  readonly #groups = new Map<string, FakeGroup>();
  #next = 0x1000;
  version = 23203;
  /** What the next call of a function returns instead of what it would. */
  readonly failures = new Map<keyof NcclApi, number>();
  /** What has gone wrong meanwhile. */
  asyncError: number = NcclStatus.success;
  lastError = "";
  /** The other ranks are made up: nobody is waited for, and nothing exchanged. */
  isAlone = false;

  readonly api: NcclApi = Object.fromEntries(
    Object.keys(ncclSymbols).map((name) => [
      name,
      (...args: unknown[]) => {
        this.calls.push(name);
        const status = this.failures.get(name as keyof NcclApi);
        this.failures.delete(name as keyof NcclApi);
        if (status !== undefined) return status;
        return (this.#functions[name as keyof NcclApi] as (...values: unknown[]) => unknown)(...args);
      },
    ]),
  ) as unknown as NcclApi;

  readonly #functions: NcclApi = {
    ncclGetVersion: (out) => {
      (out as Int32Array)[0] = this.version;
      return 0;
    },
    ncclGetErrorString: (status) => `fake error ${status}`,
    ncclGetLastError: () => this.lastError,
    ncclGetUniqueId: (id) => {
      (id as Uint8Array).fill(this.#next++ % 255);
      return 0;
    },
    ncclCommInitRankScalable: (out, size, rank, idCount, ids, config) => {
      if (idCount !== 1 || config !== 0 || rank >= size) return NcclStatus.invalidArgument;
      const key = (ids as Uint8Array).toHex();
      const group = this.#groups.get(key) ?? { size, waiting: [] };
      this.#groups.set(key, group);
      this.#next += 8;
      this.live.set(this.#next, { rank, group });
      (out as BigUint64Array)[0] = BigInt(this.#next);
      return 0;
    },
    ncclCommDestroy: (comm) => (this.live.delete(comm as number) ? 0 : NcclStatus.invalidArgument),
    ncclCommAbort: (comm) => (this.live.delete(comm as number) ? 0 : NcclStatus.invalidArgument),
    ncclCommGetAsyncError: (_comm, out) => {
      (out as Int32Array)[0] = this.asyncError;
      return 0;
    },
    ncclAllReduce: (send, receive, count, type, operation, comm) => {
      if (operation !== 0) return NcclStatus.invalidArgument;
      return this.#meet(comm as number, send, receive, `sum ${count} ${type}`, (all) => {
        if (type !== NcclType.float32) return;
        const parts = all.map((part) => new Float32Array(toArrayBuffer(part.send as Pointer, 0, count * 4)));
        const sum = Float32Array.from({ length: count }, (_, i) =>
          parts.reduce((total, part) => total + part[i]!, 0),
        );
        for (const part of all)
          new Float32Array(toArrayBuffer(part.receive as Pointer, 0, count * 4)).set(sum);
      });
    },
    ncclAllGather: (send, receive, count, type, comm) =>
      this.#meet(comm as number, send, receive, `gather ${count} ${type}`, (all) => {
        const parts = all.map((part) => new Uint8Array(toArrayBuffer(part.send as Pointer, 0, count * 4)));
        for (const part of all) {
          const out = new Uint8Array(toArrayBuffer(part.receive as Pointer, 0, all.length * count * 4));
          for (const [rank, bytes] of parts.entries()) out.set(bytes, rank * count * 4);
        }
      }),
  };

  /** Ranks must ask in their order, for the same. */
  #meet(
    comm: number,
    send: number,
    receive: number,
    what: string,
    exchange: (all: FakeGroup["waiting"]) => void,
  ): number {
    const member = this.live.get(comm);
    if (member === undefined) return NcclStatus.invalidArgument;
    if (this.isAlone) return 0;
    const { group, rank } = member;
    if (rank !== group.waiting.length || group.waiting.some((other) => other.what !== what))
      return NcclStatus.invalidUsage;
    group.waiting.push({ send, receive, what });
    if (group.waiting.length < group.size) return 0;
    exchange(group.waiting);
    group.waiting = [];
    return 0;
  }
}
