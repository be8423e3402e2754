/**
 * Preloaded into the main thread: hands itself on to Workers, and where one is a rank of a model, makes it fail at the
 * `OCTAVO_SPOIL_AT`th of its steps, or while it is built, in the manner of `OCTAVO_SPOIL`. The file `OCTAVO_SPOIL_LOG` then has the
 * time, in milliseconds of `Date.now()`.
 */
import { writeFileSync } from "node:fs";
import type { Backend } from "../../src/backend/backend.ts";
import { Tensor } from "../../src/backend/tensor.ts";
import { DeviceError } from "../../src/base/errors.ts";
import { StepRing } from "../../src/ranks/step-ring.ts";
import { KvPlan } from "../../src/runner/kv-plan.ts";
import { ModelRunner } from "../../src/runner/model-runner.ts";

const { OCTAVO_SPOIL: manner, OCTAVO_SPOIL_AT: at, OCTAVO_SPOIL_LOG: log } = process.env;
const SCRIPT = import.meta.path;

let steps = 0;
const { next } = StepRing.prototype;
const { launch } = ModelRunner.prototype;
const isRank = () => process.env["OCTAVO_TEST_RANK"] === "1";

/** Reads what is at an address that nobody has, in a kernel. */
function readNowhere(backend: Backend): void {
  const nowhere = { byteLength: 4, address: 2 ** 46, dispose: () => {} };
  const [out, table] = [
    backend.empty(backend.activationDtype, [1, 8]),
    backend.empty(backend.activationDtype, [1, 8]),
  ];
  backend.gatherRows(out, table, new Tensor(nowhere, "int32", [1]));
}

if (isRank()) {
  if (manner === "refuse") {
    KvPlan.prototype.numBlocks = () => {
      throw new DeviceError("there is no room on this device");
    };
  }
  ModelRunner.prototype.launch = function (step) {
    if (++steps === Number(at)) {
      if (log !== undefined) writeFileSync(log, String(Date.now()));
      if (manner === "throw") throw new RangeError("out of everything");
      if (manner === "exit") process.exit(9);
      if (manner === "illegal address") readNowhere((this as unknown as { backend: Backend }).backend);
      if (manner === "hang") for (;;) Bun.sleepSync(1000);
    }
    launch.call(this, step);
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
