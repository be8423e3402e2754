import { heapStats } from "bun:jsc";
import { expect, setDefaultTimeout, test } from "bun:test";
import { EngineWatch, type Snapshot } from "../../../src/server/engine-view/engine-watch.ts";

setDefaultTimeout(300_000);

/** A watch of an engine that makes a step between any two snapshots, which take no time. */
function busyWatch(): EngineWatch & Disposable {
  let steps = 0;
  const replica = {
    get stats() {
      return { steps: ++steps, running: 1, waiting: 0 };
    },
    view: async () => ({ stats: { steps } }),
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

test("watchers keep nothing of the snapshots that they have seen, and leave alone", async () => {
  const turn = () => new Promise<void>((resolve) => setImmediate(resolve));
  const { sleep } = Bun;
  // A mock would keep what it has returned.
  Bun.sleep = turn as never;
  try {
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
  } finally {
    Bun.sleep = sleep;
  }
});
