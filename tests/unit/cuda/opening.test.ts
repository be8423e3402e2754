import { expect, setDefaultTimeout, test } from "bun:test";
import type { Machine } from "../../../src/cuda/open-cuda.ts";
import { CudaOpening } from "../../../src/cuda/opening.ts";
import { FakeCuda } from "./fake-cuda.ts";

setDefaultTimeout(300_000);

const HOST = { env: {}, root: "/nowhere", cwd: "/nowhere", home: "/nowhere" };

test("nothing is opened where there is no driver", () => {
  const machine: Machine = {
    host: HOST,
    preload: () => undefined,
    open: (path) => {
      throw new Error(`no ${path}`);
    },
  };
  expect(CudaOpening.begin(0, machine)).toBeUndefined();
});

test("GPU and libraries that Workers cannot open keep nobody waiting, before or after the release", async () => {
  const cuda = new FakeCuda();
  // The Workers look for themselves: for a GPU of a number that no machine has, and CUDA of a version that nobody installs.
  cuda.driverVersion = 12000;
  const machine: Machine = { host: HOST, preload: () => undefined, open: () => cuda.api as never };
  const opening = CudaOpening.begin(99, machine)!;
  await opening.done;
  await opening.release();
});
