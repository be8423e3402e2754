import { expect, setDefaultTimeout, spyOn, test } from "bun:test";
import { CpuBackend } from "../../../src/backend/cpu/cpu-backend.ts";
import { SharedMemoryCommunicator } from "../../../src/backend/cpu/shared-memory-communicator.ts";
import type { Tensor } from "../../../src/backend/tensor.ts";
import { EngineDeadError, InvariantError } from "../../../src/base/errors.ts";
import type { Shard } from "../../../src/base/shard.ts";
import { Exchange } from "../../../src/ranks/exchange.ts";
import { RankGroup } from "../../../src/ranks/rank-group.ts";
import { allocateRankMemory } from "../../../src/ranks/rank-memory.ts";
import { thrown } from "../../support.ts";
import { bytesOf, digestOfRounds, roundLengths } from "./rounds.ts";
import { startRank } from "./support.ts";

setDefaultTimeout(300_000);

test.each([2, 4])("%d ranks see the same bytes, in their order, in rounds of any length", async (size) => {
  const memory = allocateRankMemory(size);
  const others = Array.from({ length: size - 1 }, (_, i) => startRank<string>(memory, i + 1, "rounds"));
  const own = digestOfRounds(new Exchange(new RankGroup(memory, 0)), 0);
  // A chunk is 256 KiB; what each rank must have seen, computed by one.
  const expected = new Bun.CryptoHasher("sha256");
  for (const [round, length] of roundLengths().entries()) {
    const all = Array.from({ length: size }, (_, rank) => bytesOf(rank, round, length));
    for (let offset = 0; offset < length; offset += 2 ** 18) {
      expected.update(`${round} ${offset}`);
      for (const bytes of all) expected.update(bytes.slice(offset, offset + 2 ** 18));
    }
  }
  const digest = expected.digest("hex");
  expect([own, ...(await Promise.all(others))]).toEqual(Array(size).fill(digest));
});

/** Plays rank 1 in this thread: puts its bytes in place before rank 0 asks for them. */
function twoRanks(timeout = 20_000) {
  const memory = allocateRankMemory(2, timeout);
  const groups = [0, 1].map((rank) => new RankGroup(memory, rank));
  const [first, second] = groups.map((group) => new Exchange(group));
  return { groups, first: first!, second: second! };
}

test("who has shown its bytes wakes whoever sleeps for them: nobody sleeps its slice to the end", () => {
  const { first } = twoRanks(1);
  using notify = spyOn(Atomics, "notify");
  thrown(() => first.minimum(5));
  const [rounds, rank] = notify.mock.calls[0]!;
  expect([rank, Atomics.load(rounds, 0)]).toEqual([0, 1]);
});

test("a rank that stays away has failed, for all", () => {
  const { groups, first, second } = twoRanks(120);
  const started = performance.now();
  const error = thrown(() => first.minimum(5));
  expect(error).toBeInstanceOf(EngineDeadError);
  expect((error as Error).message).toBe("rank 1 has not answered rank 0 for 0.12 s");
  expect(performance.now() - started).toBeGreaterThan(119);
  // Too late: it finds what rank 0 has shown, and no more.
  expect(second.minimum(4)).toBe(4);
  expect(thrown(() => second.minimum(5))).toMatchObject({ message: (error as Error).message });
  expect(groups[1]!.failure).toBeInstanceOf(EngineDeadError);
});

test("the failure of a rank ends the others' waiting, and the first reason stays", () => {
  const { groups, first } = twoRanks();
  groups[1]!.fail("out of everything");
  groups[0]!.fail("nobody listens");
  groups[0]!.close();
  expect(thrown(() => first.minimum(5))).toMatchObject({ message: "rank 1 failed: out of everything" });
  expect(groups[0]!.isClosed).toBe(false);
});

test("a closed group has not failed, and nobody waits in it", () => {
  const { groups, first } = twoRanks();
  groups[0]!.close();
  groups[1]!.fail("as it was ended");
  expect(groups.map(({ failure, isClosed }) => [failure, isClosed])).toEqual(
    Array(2).fill([undefined, true]),
  );
  expect(thrown(() => first.minimum(5))).toMatchObject({ message: "the ranks have been shut down" });
});

test("the leader waits for the others to leave, but not for ever", async () => {
  const memory = allocateRankMemory(3);
  const groups = [0, 1, 2].map((rank) => new RankGroup(memory, rank));
  groups[1]!.leave();
  expect(groups[0]!.awaitOthers(20)).toBe(false);
  const last = startRank(memory, 2, "leave");
  expect(groups[0]!.awaitOthers(60_000)).toBe(true);
  await last;
});

test("ranks that show other numbers of bytes do not go on", () => {
  const { first, second } = twoRanks(100);
  thrown(() => second.share(new Uint8Array(8), () => {}));
  expect(thrown(() => first.share(new Uint8Array(12), () => {}))).toBeInstanceOf(InvariantError);
});

/** A communicator whose other ranks show these values. */
class Scripted {
  readonly shard: Shard;
  constructor(private readonly others: readonly Float32Array[]) {
    this.shard = { rank: 0, size: others.length + 1 };
  }
  share(bytes: Uint8Array, receive: (pieces: readonly Uint8Array[], offset: number) => void): void {
    for (let at = 0; at < bytes.length; at += 8) {
      const pieces = this.others.map((values) => new Uint8Array(values.buffer).slice(at, at + 8));
      receive([bytes.slice(at, at + 8), ...pieces], at);
    }
  }
}

function backendAmong(...others: Float32Array[]) {
  const exchange = new Scripted(others) as unknown as Exchange;
  return new CpuBackend(undefined, new SharedMemoryCommunicator(exchange));
}

function tensorOf(backend: CpuBackend, values: readonly number[], ...shape: number[]): Tensor {
  const tensor = backend.empty("float32", shape);
  backend.upload(tensor, Float32Array.from(values));
  return tensor;
}

test("allReduceAdd adds the rounded sum of all terms", () => {
  const backend = backendAmong(Float32Array.of(2 ** -25, 4, 1e30), Float32Array.of(2 ** -25, 5, Number.NaN));
  const residual = tensorOf(backend, [2 ** -24, 0.5, 1], 1, 3);
  backend.allReduceAdd!(residual, tensorOf(backend, [1, 3, 1], 1, 3));
  const sums = [...new Float32Array(backend.download(residual).buffer)];
  expect(sums).toEqual([1, 12.5, Number.NaN]);
  expect(() => backend.allReduceAdd!(residual, tensorOf(backend, [1, 3], 1, 2))).toThrow(InvariantError);
  expect(() => backend.allReduceAdd!(residual, residual)).toThrow(InvariantError);
});

test("gatherColumns puts the parts beside each other, row by row", () => {
  const backend = backendAmong(Float32Array.of(10, 20, 30, 40), Float32Array.of(11, 21, 31, 41));
  const out = backend.empty("float32", [2, 6]);
  backend.gatherColumns!(out, tensorOf(backend, [1, 2, 3, 4], 2, 2));
  expect([...new Float32Array(backend.download(out).buffer)]).toEqual([
    1, 2, 10, 20, 11, 21, 3, 4, 30, 40, 31, 41,
  ]);
  expect(() => backend.gatherColumns!(out, tensorOf(backend, [1, 2, 3], 1, 3))).toThrow(InvariantError);
});

test("what is not counted is waited for by looking, even of a group that was closed", () => {
  const { groups, first } = twoRanks();
  let looks = 0;
  first.waitUntil(() => ++looks === 5, "the work");
  groups[0]!.close();
  first.waitUntil(() => ++looks === 10, "the work");
  expect(looks).toBe(10);
});

test("such a wait ends with the failure of another rank, and with one of its own when it takes too long", () => {
  const { groups, first, second } = twoRanks(120);
  let looks = 0;
  const wait = () =>
    first.waitUntil(() => {
      if (++looks === 3) groups[1]!.fail("out of everything");
      return false;
    }, "the work");
  expect(thrown(wait)).toMatchObject({ message: "rank 1 failed: out of everything" });
  expect(looks).toBeLessThan(6);
  expect([first.hasFailed, second.hasFailed]).toEqual([true, true]);
  // What is done already needs nobody.
  first.waitUntil(() => true, "the work");

  const late = twoRanks(120);
  expect(late.second.hasFailed).toBe(false);
  const error = thrown(() => late.second.waitUntil(() => false, "the work"));
  expect(error).toBeInstanceOf(EngineDeadError);
  expect(error).toMatchObject({ message: "the work of rank 1 has not come to an end for 0.12 s" });
  expect(late.first.hasFailed).toBe(true);
});

test("ranks that start are waited for longer", () => {
  const { first, second } = twoRanks(1);
  // Rank 1 comes when that time is over.
  const begin = performance.now();
  const least = first.starting(() => {
    let isThere = false;
    first.waitUntil(() => {
      if (performance.now() - begin > 20 && !isThere) isThere = second.starting(() => true);
      return isThere;
    }, "the work");
    return isThere;
  });
  expect(least).toBe(true);
  expect(thrown(() => first.waitUntil(() => false, "the work"))).toBeInstanceOf(EngineDeadError);
});
