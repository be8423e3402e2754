import { expect, setDefaultTimeout, test } from "bun:test";
import { InvariantError } from "../../../src/base/errors.ts";
import { SnapshotPool } from "../../../src/engine/snapshot-pool.ts";

setDefaultTimeout(300_000);

/** Three places, a border every two blocks of 16. */
function pool(...published: string[]): SnapshotPool {
  const snapshots = new SnapshotPool(3, 32);
  for (const key of published) snapshots.publish(key, snapshots.take()!);
  return snapshots;
}

const KEYS = ["a", "b", "c", "d", "e", "f"];
const hit = (count: number) => ({
  numBlocks: count,
  groups: [{ first: 0, blocks: KEYS.slice(0, count).map((_, i) => 10 + i) }],
});

test("a prefix is cut to the last border with a state, and a state is wanted where it was cut and at the end", () => {
  const snapshots = pool("b", "x");
  expect(snapshots.resume(hit(5), KEYS, 150, 16)).toEqual({
    ...{ ...hit(2), snapshot: snapshots.find("b")!, borders: [64, 128] },
  });
  expect(snapshots.resume(hit(1), KEYS, 40, 16)).toMatchObject({
    ...hit(0),
    snapshot: undefined,
    borders: [32],
  });
  expect(snapshots.resume(hit(2), KEYS, 33, 16)).toMatchObject({ ...hit(2), borders: [] });
  expect(snapshots.resume(hit(0), KEYS, 32, 16)).toMatchObject({ ...hit(0), borders: [] });
  // One border is both.
  expect(snapshots.resume(hit(4), KEYS, 65, 16)).toMatchObject({ ...hit(2), borders: [64] });
});

test("what was used least recently gives its place", () => {
  const snapshots = pool("a", "b", "c");
  const [a, b] = [snapshots.find("a")!, snapshots.find("b")!];
  snapshots.find("a");
  const places = [snapshots.take(), snapshots.take()];
  expect(places).toEqual([3 - a - b, b]);
  expect(snapshots.find("a")).toBe(a);
  expect([snapshots.find("b"), snapshots.find("c")]).toEqual([undefined, undefined]);
  snapshots.checkIntegrity(places as number[]);
});

test("nothing is given while all are taken; a second state of one key is not kept", () => {
  const snapshots = pool();
  const places = [snapshots.take()!, snapshots.take()!, snapshots.take()!];
  expect(snapshots.take()).toBeUndefined();
  snapshots.publish("a", places[0]!);
  snapshots.publish("a", places[1]!);
  expect(snapshots.find("a")).toBe(places[0]!);
  snapshots.release(places[2]!);
  snapshots.checkIntegrity([]);
  expect(() => snapshots.checkIntegrity([places[2]!])).toThrow(InvariantError);
  snapshots.clear();
  expect(snapshots.find("a")).toBeUndefined();
  snapshots.checkIntegrity([]);
});
