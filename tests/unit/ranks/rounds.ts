import type { Exchange } from "../../../src/ranks/exchange.ts";
import { Random } from "../../contract/random.ts";

const ROUNDS = 200;
const SLEEPING = new Int32Array(new SharedArrayBuffer(4));

/** Lengths of the rounds: some of several chunks. */
export function roundLengths(): number[] {
  const random = new Random(11);
  return Array.from({ length: ROUNDS }, (_, i) => 1 + random.int(i % 20 === 0 ? 600_000 : 3000));
}

/** What a rank shows in a round. */
export function bytesOf(rank: number, round: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let i = 0; i < length; i++) bytes[i] = i * 7 + rank * 31 + round * 13;
  return bytes;
}

/** Takes part in all rounds, now and then late, and hashes what comes out. */
export function digestOfRounds(exchange: Exchange, rank: number): string {
  const hash = new Bun.CryptoHasher("sha256");
  const random = new Random(100 + rank);
  for (const [round, length] of roundLengths().entries()) {
    if (random.uniform() < 0.05) Atomics.wait(SLEEPING, 0, 0, random.uniform() * 5);
    exchange.share(bytesOf(rank, round, length), (pieces, offset) => {
      hash.update(`${round} ${offset}`);
      for (const piece of pieces) hash.update(piece.slice());
    });
  }
  return hash.digest("hex");
}
