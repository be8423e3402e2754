import { expect, setDefaultTimeout, test } from "bun:test";
import * as layout from "../../../../kernels-wasm/layout.ts";
import { compileKernels, Place } from "../../../../src/backend/simd/place.ts";
import { type Task, ThreadPool } from "../../../../src/backend/simd/thread-pool.ts";
import { DeviceError } from "../../../../src/base/errors.ts";
import { eventually } from "../../../support.ts";

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

test("threads that nobody rings for sleep", async () => {
  const threads = 17;
  const place = new Place(module, 2 ** 26, threads);
  const pool = new ThreadPool(module, threads);
  pool.add(place);
  pool.start();
  await eventually(() => Atomics.load(place.words, layout.SLEEPERS / 4) === threads - 1);
  const before = process.cpuUsage();
  await Bun.sleep(1000);
  const { user, system } = process.cpuUsage(before);
  // Microseconds: some 20,000, and 130,000 if each looked for 150 whenever it has slept for 20 ms.
  expect(user + system).toBeLessThan(75_000);
  pool.dispose();
});
