import { type Pointer, toArrayBuffer } from "bun:ffi";
import { expectedSums, withoutSigns } from "../../bench/sum-reference.ts";
import { PEER_MEMORY_CONSTANTS } from "../../src/backend/cuda/peer-memory.ts";
import { namedArguments } from "../unit/backend/cuda/kernel-signatures.ts";
import type { FakeCuda, FakeLaunch } from "../unit/cuda/fake-cuda.ts";

const { PEER_BLOCKS } = PEER_MEMORY_CONSTANTS;
/** Bytes of a table of ranks. */
const TABLE_BYTES = 64;

/**
 * The kernels by which ranks exchange messages, in host memory that their threads have in common: as the sources say it.
 * @param isGivenUp whether a kernel ends that waits for another rank
 */
export function installPeers(cuda: FakeCuda, ranks: number, isGivenUp = () => false): void {
  for (const entry of ["reduce_add", "add_copied", "gather_words"]) cuda.structBytes.set(entry, TABLE_BYTES);
  cuda.others = (address, count) => new Uint8Array(toArrayBuffer(address as Pointer, 0, count));

  cuda.effects.set("reduce_add", (launch) => {
    const { residual, branch, size, rank } = namedArguments(launch) as Record<string, number>;
    const { place, endRound } = roundOf(launch, 16);
    const own = new Uint16Array(Math.ceil(size! / 8) * 8);
    own.set(halves(branch!, size!));
    const words = new Uint32Array(own.buffer).map((word) => (word === 0 ? 0x8000_0000 : word));
    const others = Array.from({ length: ranks }, (_, other) => other).filter((other) => other !== rank);
    for (const other of others) wordsAt(place(other, rank!), words.length).set(words);
    const parts = Array.from({ length: ranks }, () => words);
    for (const other of others) {
      const slot = wordsAt(place(rank!, other), words.length);
      while (slot.includes(0) && !isGivenUp()) Bun.sleepSync(0.05);
      parts[other] = slot.slice();
      slot.fill(0);
    }
    const target = halves(residual!, size!);
    const sums = expectedSums(
      target,
      parts.map(({ buffer }) => withoutSigns(new Uint16Array(buffer.slice(0)))),
    );
    target.set(sums);
    endRound();
  });

  cuda.effects.set("gather_words", (launch) => {
    const { out, part, first, width, words, rank } = namedArguments(launch) as Record<string, number>;
    const { place, endRound, tag } = roundOf(launch, 8);
    const own = wordsAt(part! + 4 * first!, words!);
    const target = (from: number, i: number) => {
      const row = Math.floor((first! + i) / width!);
      return (row * ranks + from) * width! + ((first! + i) % width!);
    };
    const result = wordsAt(out!, target(ranks - 1, words! - 1) + 1);
    for (let other = 0; other < ranks; other++) {
      if (other === rank) continue;
      const slot = wordsAt(place(other, rank!), 2 * words!);
      for (const [i, word] of own.entries()) [slot[2 * i], slot[2 * i + 1]] = [word, tag];
    }
    for (let other = 0; other < ranks; other++) {
      const slot = other === rank ? undefined : wordsAt(place(rank!, other), 2 * words!);
      while (slot !== undefined && !own.every((_, i) => slot[2 * i + 1] === tag) && !isGivenUp())
        Bun.sleepSync(0.05);
      for (const [i, word] of own.entries()) result[target(other, i)] = slot?.[2 * i] ?? word;
    }
    endRound();
  });

  cuda.effects.set("add_copied", (launch) => {
    const { residual, branch, copies, offset, rank, sequence, size } = namedArguments(launch) as Record<
      string,
      number
    >;
    const bases = new BigUint64Array(launch.args[0]!.slice().buffer);
    const done = (of: number, from: number) =>
      new Int32Array(wordsAt(Number(bases[of]) + offset! + 4 * from, 1).buffer);
    const other = 1 - rank!;
    Atomics.store(done(other, rank!), 0, sequence!);
    while (((Atomics.load(done(rank!, other), 0) - sequence!) | 0) < 0 && !isGivenUp()) Bun.sleepSync(0.05);
    const target = halves(residual!, size!);
    const terms = [halves(branch!, size!), halves(copies!, size!)];
    target.set(expectedSums(target, rank === 0 ? terms : terms.reverse()));
  });

  cuda.effects.set("add", (launch) => {
    const { residual, branch, size } = namedArguments(launch) as Record<string, number>;
    const target = halves(residual!, size!);
    target.set(expectedSums(target, [halves(branch!, size!)]));
  });

  /** Where messages of the launch's round are, of items of so many bytes. */
  function roundOf(launch: FakeLaunch, itemBytes: number) {
    const { rounds, offset, capacity } = namedArguments(launch) as Record<string, number>;
    const bases = new BigUint64Array(launch.args[0]!.slice().buffer);
    const counts = wordsAt(rounds!, PEER_BLOCKS);
    const round = counts[0]!;
    return {
      tag: round + 1,
      place: (of: number, from: number) =>
        Number(bases[of]) + offset! + ((round % 2) * ranks + from) * capacity! * itemBytes,
      endRound: () => counts.fill(round + 1),
    };
  }
}

function wordsAt(address: number, count: number): Uint32Array<ArrayBuffer> {
  return new Uint32Array(toArrayBuffer(address as Pointer, 0, count * 4));
}

function halves(address: number, count: number): Uint16Array<ArrayBuffer> {
  return new Uint16Array(toArrayBuffer(address as Pointer, 0, count * 2));
}
