import { expect, setDefaultTimeout, test } from "bun:test";
import * as layout from "../../../../kernels-wasm/layout.ts";
import { compileKernels, type Kernels, Place } from "../../../../src/backend/simd/place.ts";
import { takePart } from "../../../../src/backend/simd/take-part.ts";
import { type Task, ThreadPool } from "../../../../src/backend/simd/thread-pool.ts";
import { DeviceError } from "../../../../src/base/errors.ts";

setDefaultTimeout(300_000);

const module = compileKernels();

function placeOf(threads: number): Place {
  return new Place(module, 2 ** 22, threads);
}

/** Of a few units that read nothing. */
function task(kernel: number): Task {
  return { kernel, units: 4, work: 1, write: (args) => args.words(0, 0, 0, layout.FIRST_FREE) };
}

/** What a task that cannot be done fails with. */
function failureOf(body: () => void): unknown {
  try {
    body();
  } catch (error) {
    return error;
  }
  return undefined;
}

test("a kernel that traps is a fatal error of the device", () => {
  const place = placeOf(1);
  const pool = new ThreadPool(module, 1);
  pool.add(place);
  pool.run(place, task(layout.READ));
  const failure = failureOf(() => pool.run(place, task(1000)));
  expect(failure).toBeInstanceOf(DeviceError);
  expect(failure).toMatchObject({ fatal: true, message: expect.stringContaining("a kernel failed") });
});

test("a unit of a thread that has failed is not waited for", () => {
  const place = placeOf(2);
  // Another thread has claimed all units, and fails.
  const claimed = Object.create(place, { kernels: { value: { ...place.kernels, run: () => {} } } });
  const pool = new ThreadPool(module, 2);
  pool.add(claimed);
  Atomics.store(place.words, layout.FAILED / 4, 1);
  const failure = failureOf(() => pool.run(claimed, task(layout.READ)));
  expect(failure).toMatchObject({ fatal: true, message: expect.stringContaining("a thread") });
  pool.dispose();
});

test("a thread that traps says so", async () => {
  const place = placeOf(2);
  const pool = new ThreadPool(module, 2);
  pool.add(place);
  pool.start();
  // A task that the other thread alone is told of.
  place.kernels.close();
  place.words[layout.TOTAL / 4] = 1;
  place.words[layout.KERNEL / 4] = 1000;
  place.kernels.open();
  const deadline = performance.now() + 20_000;
  while (Atomics.load(place.words, layout.FAILED / 4) === 0 && performance.now() < deadline) {
    Atomics.add(place.words, layout.BELL / 4, 1);
    Atomics.notify(place.words, layout.BELL / 4);
    await Bun.sleep(5);
  }
  expect(Atomics.load(place.words, layout.FAILED / 4)).toBe(1);
  pool.dispose();
});

test("a thread looks for tasks only once it has heard the bell", () => {
  const { words } = placeOf(1);
  // How often it has rung when the thread has listened for the first time, the second, and so on.
  const rings = [0, 0, 1, 2, 2, 2, 3, 3];
  const heard: [known: number, isAwake: boolean][] = [];
  let runs = 0;
  const kernels = {
    listen: (known: number, isAwake: boolean) => {
      heard.push([known, isAwake]);
      if (heard.length === rings.length) Atomics.store(words, layout.ENDED / 4, 1);
      return rings[heard.length - 1]!;
    },
    run: () => void runs++,
  };
  Atomics.store(words, layout.MESSAGES / 4, 1);
  takePart([kernels as unknown as Kernels], words, 1);
  expect(heard).toEqual([
    [0, true],
    [0, false],
    [0, false],
    [1, true],
    [2, true],
    [2, false],
    [2, false],
    [3, true],
  ]);
  expect(runs).toBe(rings.length);
  expect(Atomics.load(words, layout.FAILED / 4)).toBe(0);
});
