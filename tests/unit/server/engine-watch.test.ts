import { heapStats } from "bun:jsc";
import { afterEach, beforeEach, expect, setDefaultTimeout, test } from "bun:test";
import { EngineWatch, type Snapshot } from "../../../src/server/engine-view/engine-watch.ts";

setDefaultTimeout(300_000);

/** A watch of an engine that makes a step between any two snapshots, which take no time. */
function busyWatch(engine: { failure?: Error } = {}): EngineWatch & Disposable {
  let steps = 0;
  const replica = {
    get stats() {
      return { steps: ++steps, running: 1, waiting: 0 };
    },
    get failure() {
      return engine.failure;
    },
    view: async () => {
      if (engine.failure) throw engine.failure;
      return { stats: { steps } };
    },
  };
  const nothing = () => () => {};
  return new EngineWatch(
    { replicas: [replica], onStep: nothing } as never,
    { onInterToken: nothing } as never,
    0,
  );
}

function promises(): number {
  Bun.gc(true);
  return heapStats().objectTypeCounts["Promise"] ?? 0;
}

const turn = () => new Promise<void>((resolve) => setImmediate(resolve));

const { sleep } = Bun;
beforeEach(() => {
  // A mock would keep what it has returned.
  Bun.sleep = turn as never;
});
afterEach(() => {
  Bun.sleep = sleep;
});

test("watchers keep nothing of the snapshots that they have seen, and leave alone", async () => {
  using watch = busyWatch();
  const [stays, leaves] = [new AbortController(), new AbortController()];
  const kept = watch.snapshots(stays.signal);
  const left = watch.snapshots(leaves.signal);
  await left.next();
  const next = async () => (await kept.next()).value as Snapshot;
  await next();
  const before = promises();
  for (let i = 0; i < 5000; i++) await next();
  expect(promises() - before).toBeLessThan(500);
  leaves.abort();
  expect(await left.next()).toEqual({ value: undefined, done: true });
  const { view } = await next();
  expect(await next()).not.toMatchObject({ view });
  stays.abort();
  expect(await kept.next()).toEqual({ value: undefined, done: true });
});

test("all watchers learn what the engine died of: those that wait, that come, and that were not ready then", async () => {
  const engine: { failure?: Error } = {};
  using watch = busyWatch(engine);
  const { signal } = new AbortController();
  const [waits, isSlow] = [watch.snapshots(signal), watch.snapshots(signal)];
  await isSlow.next();
  await waits.next();
  engine.failure = new Error("dead");
  const reasonOf = (next: Promise<unknown>) => next.then(() => "none", String);
  while ((await reasonOf(waits.next())) === "none");
  for (const watcher of [isSlow, watch.snapshots(signal)]) {
    let reason = "none in time";
    void reasonOf(watcher.next()).then((text) => {
      reason = text;
    });
    for (let i = 0; i < 20; i++) await turn();
    expect(reason).toBe("Error: dead");
  }
});
