import { driverVersion, type Machine, thisMachine } from "./open-cuda.ts";

/** The parts of opening a GPU that take long, each for a Worker of its own. */
export type OpeningTask =
  /** Initialise the driver and retain the primary context of GPU `ordinal`, until the next message. */
  | { readonly part: "context"; readonly ordinal: number }
  /** Load cuBLASLt and NVRTC. */
  | { readonly part: "libraries"; readonly driverMajor: number };

/**
 * A GPU being opened in Workers while this thread does something else: starting the driver, making the context and loading
 * cuBLASLt take some 250 ms together, which a process pays once, whichever thread asks first. What fails here fails again,
 * and is reported, where this thread opens the GPU itself.
 */
export class CudaOpening {
  /** Resolves when the Workers have done what they can; never rejects. */
  readonly done: Promise<void>;
  readonly #workers: readonly Worker[];

  private constructor(tasks: readonly OpeningTask[]) {
    const parts = tasks.map((task) => {
      const worker = new Worker(new URL("./opening-worker.ts", import.meta.url));
      worker.postMessage(task);
      return { worker, done: nextReply(worker) };
    });
    this.#workers = parts.map(({ worker }) => worker);
    this.done = Promise.all(parts.map((part) => part.done)).then(() => {});
  }

  /** Undefined where there is no driver to open: that is found out at once. */
  static begin(ordinal = 0, machine: Machine = thisMachine()): CudaOpening | undefined {
    const version = driverVersion(machine);
    if (version === undefined) return undefined;
    return new CudaOpening([
      { part: "context", ordinal },
      { part: "libraries", driverMajor: version[0] },
    ]);
  }

  /** Ends the Workers and what they hold, the context above all: call it once this thread holds its own. */
  async release(): Promise<void> {
    await this.done;
    await Promise.all(
      this.#workers.map(async (worker) => {
        const released = nextReply(worker);
        worker.postMessage("release");
        await released;
        worker.terminate();
      }),
    );
  }
}

/** Resolves at the Worker's next message, or when it fails. */
function nextReply(worker: Worker): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  worker.onmessage = () => resolve();
  worker.onerror = () => resolve();
  return promise;
}
