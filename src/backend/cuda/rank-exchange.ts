import type { Shard } from "../../base/shard.ts";

/** The way between the threads of ranks, in memory of the host: what they agree by until their GPUs can exchange anything. */
export interface RankExchange {
  readonly shard: Shard;
  /** A rank has failed. */
  readonly hasFailed: boolean;
  /**
   * Shows the other ranks `bytes` and calls `receive` with every rank's, this one's included, in the order of the ranks: once,
   * or piece by piece with the offset of each. Every rank has as many, one at least. The pieces are valid during the call only.
   * @throws OctavoError when a rank has failed, or does not take part in time.
   */
  share(bytes: Uint8Array, receive: (pieces: readonly Uint8Array[], offset: number) => void): void;
  /**
   * Waits until `isDone`, looking again and again. @param what of this rank, in words
   * @throws OctavoError when a rank has failed, or it takes too long; what `isDone` throws.
   */
  waitUntil(isDone: () => boolean, what: string): void;
}

/** Every rank's bytes, in the order of the ranks. */
export function shareBytes(exchange: RankExchange, own: Uint8Array): Uint8Array<ArrayBuffer>[] {
  const all = Array.from({ length: exchange.shard.size }, () => new Uint8Array(own.length));
  exchange.share(own, (pieces, offset) => {
    for (const [rank, piece] of pieces.entries()) all[rank]!.set(piece, offset);
  });
  return all;
}

/** Every rank's numbers, in the order of the ranks. */
export function shareNumbers(exchange: RankExchange, ...own: number[]): number[][] {
  const bytes = new Uint8Array(Float64Array.from(own).buffer);
  return shareBytes(exchange, bytes).map(({ buffer }) => [...new Float64Array(buffer)]);
}

/** Returns when every rank has called it. */
export function awaitRanks(exchange: RankExchange): void {
  shareNumbers(exchange, 0);
}
