import * as layout from "../../../kernels-wasm/layout.ts";
import { DeviceError, invariant, messageOf } from "../../base/errors.ts";
import { workerScript } from "../../base/program-file.ts";
import type { Place } from "./place.ts";
import type { PoolMessage } from "./pool-worker.ts";
import type { MachineCode } from "./x64/machine-code.ts";

const POOL_WORKER = workerScript("src/backend/simd/pool-worker.ts");

/** Writes a kernel's arguments. */
export class Arguments {
  readonly #words: Int32Array;
  readonly #floats: Float32Array;
  readonly #doubles: Float64Array;

  constructor({ buffer }: Int32Array) {
    this.#words = new Int32Array(buffer, layout.ARGUMENTS, layout.ARGUMENT_WORDS);
    this.#floats = new Float32Array(buffer, layout.ARGUMENTS, layout.ARGUMENT_WORDS);
    this.#doubles = new Float64Array(buffer, layout.ARGUMENTS, layout.ARGUMENT_WORDS / 2);
  }

  /** Integers and addresses from word `first` on. */
  words(first: number, ...values: number[]): void {
    for (let i = 0; i < values.length; i++) this.#words[first + i] = values[i]!;
  }

  float(index: number, value: number): void {
    this.#floats[index] = value;
  }

  /** In two words, the first of them even. */
  double(index: number, value: number): void {
    this.#doubles[index / 2] = value;
  }

  /** A copy of all words. */
  copy(): Int32Array {
    return new Int32Array(this.#words);
  }

  /** Writes a copy back. */
  paste(words: Int32Array): void {
    this.#words.set(words);
  }
}

/** A task: a kernel, and the number of its units. */
export interface Task {
  readonly kernel: number;
  readonly units: number;
  /** Multiplications or so in all. Threads are woken for what takes longer than waking them. */
  readonly work: number | (() => number);
  readonly write: (args: Arguments) => void;
}

/** A task with its arguments. */
export interface RecordedTask extends Omit<Task, "write"> {
  readonly place: Place;
  readonly words: Int32Array;
}

/** A unit will never be done, so that nothing can be computed any more. */
class KernelError extends DeviceError {
  override get fatal(): boolean {
    return true;
  }
}

/** Work of a task that one thread does alone: some ten microseconds. */
export const ALONE = 2 ** 17;
/** Work that is worth waking threads that sleep, which costs some fifty microseconds. Those that are awake share less, too. */
const WAKING = 2 ** 20;

/**
 * Threads that share the units of tasks with the one that calls. The others are started at the first task that is worth it, or ahead, and
 * no task waits for them to be there: a thread that comes late finds that nothing is left to do.
 */
export class ThreadPool {
  readonly #places: Place[] = [];
  readonly #arguments = new Map<Place, Arguments>();
  readonly #workers: Worker[] = [];
  #recording: RecordedTask[] | undefined;
  #isDisposed = false;
  #hasFailed = false;

  constructor(
    private readonly module: WebAssembly.Module,
    readonly threads: number,
    /** Assembled code that kernels may call. */
    readonly code?: MachineCode,
  ) {}

  /** Tasks may be about this place from here on. */
  add(place: Place): void {
    this.#places.push(place);
    this.#arguments.set(place, new Arguments(place.words));
    this.#introduce(place, this.#workers);
  }

  /** Returns when the task is done, or recorded. @throws DeviceError when it cannot be done any more */
  run(place: Place, { kernel, units, work, write }: Task): void {
    if (units === 0) return;
    const args = this.#arguments.get(place)!;
    this.#write(place, kernel, units);
    write(args);
    if (this.#recording === undefined) this.#compute(place, units, work);
    else this.#recording.push({ place, kernel, units, work, words: args.copy() });
  }

  /** The tasks that are run by `run`, without running them. They may be run while the addresses that they name are those of the same things. */
  record(run: () => void): readonly RecordedTask[] {
    const tasks: RecordedTask[] = [];
    this.#recording = tasks;
    try {
      run();
    } finally {
      this.#recording = undefined;
    }
    return tasks;
  }

  /** Runs recorded tasks. @throws as `run` */
  repeat(tasks: readonly RecordedTask[]): void {
    for (const { place, kernel, units, work, words } of tasks) {
      this.#write(place, kernel, units);
      this.#arguments.get(place)!.paste(words);
      this.#compute(place, units, work);
    }
  }

  /** Begins to write a task down, of which the arguments are still to come. */
  #write({ kernels, words }: Place, kernel: number, units: number): void {
    // Assembled code is gone by then.
    invariant(!this.#isDisposed, "CPU backend used after dispose()");
    kernels.close();
    words[layout.TOTAL / 4] = units;
    words[layout.KERNEL / 4] = kernel;
  }

  /** Has the task that is written down computed. */
  #compute(place: Place, units: number, work: Task["work"]): void {
    const { kernels } = place;
    kernels.open();
    if (units > 1 && this.threads > 1) this.#ring(place, typeof work === "number" ? work : work());
    try {
      kernels.run(0);
      while (kernels.finish() === 0) this.#assertAlive();
    } catch (error) {
      this.#hasFailed = true;
      if (error instanceof DeviceError) throw error;
      throw new KernelError(`a kernel failed: ${messageOf(error)}`, { cause: error });
    }
  }

  /** A task was not done: some thread may be at it for ever. */
  get hasFailed(): boolean {
    return this.#hasFailed;
  }

  dispose(): void {
    if (this.#isDisposed) return;
    this.#isDisposed = true;
    const words = this.#places[0]?.words;
    if (words === undefined) return;
    Atomics.store(words, layout.ENDED / 4, 1);
    Atomics.add(words, layout.BELL / 4, 1);
    this.#wake(words);
    for (const worker of this.#workers) worker.terminate();
  }

  /** Tells other threads of a task that is worth it. */
  #ring(place: Place, work: number): void {
    if (work <= ALONE) return;
    this.start();
    const { words } = this.#places[0]!;
    Atomics.store(words, layout.PLACE / 4, this.#places.indexOf(place));
    Atomics.add(words, layout.BELL / 4, 1);
    if (work > WAKING) this.#wake(words);
  }

  #wake(words: Int32Array): void {
    if (Atomics.load(words, layout.SLEEPERS / 4) > 0) Atomics.notify(words, layout.BELL / 4);
  }

  /** Starts the other threads, where they are not yet. */
  start(): void {
    if (this.#workers.length > 0 || this.#isDisposed) return;
    for (let thread = 1; thread < this.threads; thread++)
      this.#workers.push(new Worker(POOL_WORKER, { ref: false }));
    for (const place of this.#places) this.#introduce(place, this.#workers);
  }

  /** Threads leave their loop for a message when the count of messages says that there is one. */
  #introduce({ memory }: Place, workers: readonly Worker[]): void {
    if (workers.length === 0) return;
    const { words } = this.#places[0]!;
    Atomics.add(words, layout.MESSAGES / 4, 1);
    const common = { module: this.module, memory, code: this.code?.address ?? 0 };
    for (const [i, worker] of workers.entries())
      worker.postMessage({ ...common, thread: i + 1 } satisfies PoolMessage);
  }

  #assertAlive(): void {
    if (Atomics.load(this.#places[0]!.words, layout.FAILED / 4) !== 0)
      throw new KernelError("a thread of the CPU backend has failed");
  }
}
