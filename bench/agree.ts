import { type RankExchange, shareNumbers } from "../src/backend/cuda/rank-exchange.ts";

/** Compares the bits of results among all ranks. @throws Error at all of them where some differ */
export function agree(ranks: RankExchange, results: readonly Uint8Array[], title: string): void {
  const hash = results.reduce((before, bytes) => Bun.hash.wyhash(bytes, before), 0n);
  const halves = [Number(hash & 0xffff_ffffn), Number(hash >> 32n)];
  for (const [rank, [low, high]] of shareNumbers(ranks, ...halves).entries())
    if (low !== halves[0] || high !== halves[1]) throw new Error(`${title}: rank ${rank} has other bits`);
}
