import { expect, setDefaultTimeout, test } from "bun:test";
import { GpuOpening, type Rehearsal } from "../../../../src/backend/cuda/gpu-opening.ts";
import type { Machine } from "../../../../src/cuda/open-cuda.ts";
import { FakeCuda } from "../../cuda/fake-cuda.ts";

setDefaultTimeout(300_000);

const REHEARSAL: Rehearsal = { dtype: "bfloat16", tokens: 64, inFeatures: 64, outFeatures: 64 };
const HOST = { env: {}, root: "/nowhere", cwd: "/nowhere", home: "/nowhere" };

test("nothing is opened where there is no driver", () => {
  const machine: Machine = {
    host: HOST,
    preload: () => undefined,
    setDefault: () => {},
    open: (path) => {
      throw new Error(`no ${path}`);
    },
  };
  expect(GpuOpening.begin(0, REHEARSAL, machine)).toBeUndefined();
});

test("Workers that cannot open anything keep nobody waiting, before the end or at it", async () => {
  const cuda = new FakeCuda();
  cuda.driverVersion = 12000;
  // This thread finds a driver; the Workers look for one themselves, and may find none.
  const machine: Machine = {
    host: HOST,
    preload: () => undefined,
    setDefault: () => {},
    open: () => cuda.api as never,
  };
  const opening = GpuOpening.begin(0, REHEARSAL, machine)!;
  await opening.opened;
  const ending = opening.finish();
  expect(opening.finish()).toBe(ending);
  await ending;
});

test("an end asked for at once comes after the opening", async () => {
  const cuda = new FakeCuda();
  const machine: Machine = {
    host: HOST,
    preload: () => undefined,
    setDefault: () => {},
    open: () => cuda.api as never,
  };
  const opening = GpuOpening.begin(0, REHEARSAL, machine)!;
  const order: string[] = [];
  void opening.opened.then(() => order.push("opened"));
  await opening.finish().then(() => order.push("ended"));
  expect(order).toEqual(["opened", "ended"]);
});
