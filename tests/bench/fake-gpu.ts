import type { Mark } from "../../bench/profiling-backend.ts";
import type { CapturedGraph } from "../../src/backend/backend.ts";
import { CpuBackend } from "../../src/backend/cpu/cpu-backend.ts";

/** A clock that only ops and fills move on, a millisecond each; graphs are ops called again. */
export class FakeGpu extends CpuBackend {
  now = 0;
  liveMarks = 0;

  mark(): Mark & { readonly at: number } {
    this.liveMarks++;
    const { now } = this;
    return {
      at: now,
      isDone: false,
      elapsedSince: (start) => now - (start as Mark & { readonly at: number }).at,
      dispose: () => {
        this.liveMarks--;
      },
    };
  }

  capture(enqueue: () => void): CapturedGraph {
    return { launch: enqueue, dispose: () => {} };
  }

  override fill(...args: Parameters<CpuBackend["fill"]>): void {
    this.now++;
    if (args[0].size < 2 ** 20) super.fill(...args);
  }

  override linear(...args: Parameters<CpuBackend["linear"]>): void {
    this.now++;
    super.linear(...args);
  }

  override attend(...args: Parameters<CpuBackend["attend"]>): void {
    this.now += 3;
    super.attend(...args);
  }

  override upload(...args: Parameters<CpuBackend["upload"]>): void {
    this.now += 0.5;
    super.upload(...args);
  }
}
