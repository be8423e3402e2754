import type { FloatDType } from "../../base/dtype.ts";
import { workerScript } from "../../base/program-file.ts";
import { driverVersion, type Machine, thisMachine } from "../../cuda/open-cuda.ts";

/** A product to compute once: cuBLASLt loads its kernels at their first use, which takes some 100 ms. */
export interface Rehearsal {
  readonly dtype: FloatDType;
  /** T, K and N of out[T, N] = x[T, K] · weight[N, K]ᵀ. */
  readonly tokens: number;
  readonly inFeatures: number;
  readonly outFeatures: number;
}

/** The parts of opening a GPU that take long, each for a Worker of its own. */
export type OpeningTask =
  /** Initialises the driver, retains the GPU's primary context until it is told to end, then rehearses. */
  | { readonly part: "context"; readonly gpuIndex: number; readonly rehearsal: Rehearsal }
  /** Loads cuBLASLt and NVRTC. */
  | { readonly part: "libraries"; readonly driverMajor: number };

/** The Workers' replies: that the GPU may be opened, and that they have nothing more to do. */
export type OpeningReply = "opened" | "ended";

/**
 * A GPU being opened in Workers while this thread does something else: starting the driver, making the context and
 * loading cuBLASLt with the kernels of a first product take some 350 ms together, which a process pays once, whichever
 * thread comes first. What fails here fails again, and is reported, where this thread opens the GPU itself.
 */
export class GpuOpening {
  /** Resolves when this thread can open the GPU without a wait; never rejects. */
  readonly opened: Promise<void>;
  readonly #parts: readonly OpeningPart[];
  #ending: Promise<void> | undefined;

  private constructor(tasks: readonly OpeningTask[]) {
    this.#parts = tasks.map((task) => new OpeningPart(task));
    this.opened = Promise.all(this.#parts.map(({ opened }) => opened)).then(() => {});
  }

  /** Undefined where there is no driver to open: that is found out at once. */
  static begin(
    gpuIndex: number,
    rehearsal: Rehearsal,
    machine: Machine = thisMachine(),
  ): GpuOpening | undefined {
    const version = driverVersion(machine);
    if (version === undefined) return undefined;
    return new GpuOpening([
      { part: "context", gpuIndex, rehearsal },
      { part: "libraries", driverMajor: version[0] },
    ]);
  }

  /**
   * Ends the Workers, which give back their context and memory: call it once this thread holds a context of its own.
   * Resolves when they have; never rejects. Safe to call twice.
   */
  finish(): Promise<void> {
    this.#ending ??= Promise.all(this.#parts.map((part) => part.end())).then(() => {});
    return this.#ending;
  }
}

/** A Worker with its task. */
class OpeningPart {
  readonly opened: Promise<void>;
  readonly #worker = new Worker(workerScript("src/backend/cuda/gpu-opening-worker.ts"));
  readonly #ended: Promise<void>;

  constructor(task: OpeningTask) {
    const [opened, ended] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
    this.opened = opened.promise;
    this.#ended = ended.promise;
    this.#worker.onmessage = ({ data }: MessageEvent<OpeningReply>) => {
      if (data === "opened") opened.resolve();
      else ended.resolve();
    };
    this.#worker.onerror = () => {
      opened.resolve();
      ended.resolve();
    };
    this.#worker.postMessage(task);
  }

  async end(): Promise<void> {
    this.#worker.postMessage("end");
    await this.#ended;
    this.#worker.terminate();
  }
}
