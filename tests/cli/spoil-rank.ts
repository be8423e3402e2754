/**
 * Preloaded into the main thread: hands itself on to Workers, and where one is a rank of a model, makes it fail at the
 * `OCTAVO_SPOIL_AT`th of its steps, or while it is built, in the manner of `OCTAVO_SPOIL`.
 */
import { CpuBackend } from "../../src/backend/cpu/cpu-backend.ts";
import { DeviceError } from "../../src/base/errors.ts";
import { StepRing } from "../../src/ranks/step-ring.ts";
import { KvPlan } from "../../src/runner/kv-plan.ts";

const { OCTAVO_SPOIL: manner, OCTAVO_SPOIL_AT: at } = process.env;
const SCRIPT = import.meta.path;

let steps = 0;
const { next } = StepRing.prototype;
const { prepareBatch } = CpuBackend.prototype;
const isRank = () => process.env["OCTAVO_TEST_RANK"] === "1";

if (isRank()) {
  if (manner === "refuse") {
    KvPlan.prototype.numBlocks = () => {
      throw new DeviceError("there is no room on this device");
    };
  }
  CpuBackend.prototype.prepareBatch = function (...args) {
    if (++steps === Number(at)) {
      if (manner === "throw") throw new RangeError("out of everything");
      if (manner === "exit") process.exit(9);
      if (manner === "hang") for (;;) Bun.sleepSync(1000);
    }
    prepareBatch.apply(this, args);
  };
  StepRing.prototype.next = function () {
    if (manner === "exit when idle" && steps === Number(at)) {
      // The leader has its result by then, and no more to do.
      steps++;
      next.call(this);
      Bun.sleepSync(500);
      process.exit(9);
    }
    return next.call(this);
  };
}

const Original = globalThis.Worker;
globalThis.Worker = class extends Original {
  constructor(url: string | URL, options: WorkerOptions = {}) {
    const env = { ...process.env, OCTAVO_TEST_RANK: String(url).endsWith("/rank-worker.ts") ? "1" : "0" };
    super(url, { ...options, preload: [SCRIPT], env } as WorkerOptions);
  }
} as typeof Worker;
