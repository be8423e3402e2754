import { expect, spyOn } from "bun:test";
import { KernelLibrary } from "../../../../src/backend/cuda/kernel-library.ts";
import type { FakeLaunch } from "../../cuda/fake-cuda.ts";
import { FakeMachine } from "./fake-machine.ts";

/** The limits that every supported GPU grants: 99 KiB of shared memory is the least, that of sm_86, sm_89 and sm_120. */
const LIMITS = { gridX: 2 ** 31 - 1, gridYz: 65535, threads: 1024, sharedBytes: 99 * 1024 };
/** Shared memory that Hopper grants a block, and the kernels that are its own or ask the GPU how much it has. */
export const HOPPER_SHARED_BYTES = 227 * 1024;
const ASKS_THE_GPU = [
  ...["decode_layers", "linear_float8", "linear_quantised", "linear_quantised_wgmma"],
  ...["linear_quantised_split"],
  ...["attention_prefill_hopper", "draw_small", "draw_wgmma", "linear_large", "linear_small", "linear_wgmma"],
];
export const MULTIPROCESSORS = 132;

/** A fake Hopper machine with a backend whose launches are recorded. A file's tests share one and dispose of it at their end. */
export class LaunchRecorder implements Disposable {
  readonly machine = new FakeMachine();
  readonly backend = this.machine.backend();
  /** Calls of `KernelLibrary.kernel`, of any backend. */
  readonly requested = spyOn(KernelLibrary.prototype, "kernel");

  /** The launches of `run`, each within the limits of every GPU. */
  readonly launches = (run: () => void): FakeLaunch[] => {
    const { launches } = this.machine.cuda;
    launches.length = 0;
    run();
    for (const { entry, grid, block, sharedBytes, dependent } of launches) {
      const [x, y, z] = grid as [number, number, number];
      const within =
        Math.min(x, y, z) >= 1 &&
        x <= LIMITS.gridX &&
        Math.max(y, z) <= LIMITS.gridYz &&
        block[0]! % 32 === 0 &&
        block[0]! <= LIMITS.threads &&
        sharedBytes <= (ASKS_THE_GPU.includes(entry) ? HOPPER_SHARED_BYTES : LIMITS.sharedBytes);
      expect({ entry, grid, block, sharedBytes, within }).toMatchObject({ within: true });
      expect(dependent).toBe(true);
    }
    return [...launches];
  };

  /** The one launch of `run`. */
  readonly launch = (run: () => void): FakeLaunch => {
    const all = this.launches(run);
    expect(all).toHaveLength(1);
    return all[0]!;
  };

  [Symbol.dispose](): void {
    this.requested.mockRestore();
    this.machine[Symbol.dispose]();
  }
}
