import { mkdtempSync, readdirSync, readlinkSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** A folder of its own, removed when the block that declared it with `using` ends. */
export function temporaryFolder(): Disposable & { readonly path: string; file(name: string): string } {
  const path = mkdtempSync(join(tmpdir(), "octavo-"));
  return {
    path,
    file: (name) => join(path, name),
    [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }),
  };
}

/** What `run` throws. */
export function thrown(run: () => unknown): unknown {
  try {
    run();
  } catch (error) {
    return error;
  }
  throw new Error("nothing was thrown");
}

/** Waits until a condition holds; how long that takes is the machine's affair, unless it is a minute. */
export async function eventually(condition: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = performance.now() + 60_000;
  while (!(await condition())) {
    if (performance.now() > deadline) throw new Error("the condition does not come true");
    await Bun.sleep(5);
  }
}

/** Starts a clock of this thread's CPU time, in seconds: it does not run while others have the processor. */
export function cpuClock(): () => number {
  const started = process.threadCpuUsage();
  return () => {
    const { user, system } = process.threadCpuUsage(started);
    return (user + system) / 1e6;
  };
}

/**
 * How long this thread kept to itself each time, in milliseconds of CPU time, sorted: what a timer or a client of it had
 * to wait at most, were the machine free.
 */
export async function busyTurns(run: () => Promise<unknown>): Promise<Float64Array> {
  const turns: number[] = [];
  let spent = cpuClock();
  const timer = setInterval(() => {
    turns.push(spent() * 1000);
    spent = cpuClock();
  }, 1);
  try {
    await run();
  } finally {
    clearInterval(timer);
  }
  return Float64Array.from([...turns, spent() * 1000]).sort();
}

/** Files below `path` that this process has open. Others come and go while a test runs, whatever it does. */
export function openBelow(path: string): number {
  const targets = readdirSync("/proc/self/fd").map((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`);
    } catch {
      return "";
    }
  });
  return targets.filter((target) => target.startsWith(path)).length;
}
