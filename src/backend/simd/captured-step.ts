import type { CapturedGraph } from "../backend.ts";
import type { Contexts, Runs } from "./contexts.ts";
import type { RecordedTask, ThreadPool } from "./thread-pool.ts";

/** A captured step: the tasks of its ops, and calls of what the host does itself, in their order. */
export class CapturedStep implements CapturedGraph {
  readonly #parts: (RecordedTask[] | (() => void))[] = [];
  /** The contexts that its layers attend to, which are listed once. */
  readonly #contexts: { readonly contexts: Contexts; readonly runs: Runs }[] = [];

  constructor(
    private readonly pool: ThreadPool,
    /** The memory that its tasks name is not theirs any more. */
    readonly isStale: () => boolean,
  ) {}

  addCall(run: () => void): void {
    this.#parts.push(run);
  }

  addTasks(tasks: readonly RecordedTask[]): void {
    const last = this.#parts.at(-1);
    if (Array.isArray(last)) last.push(...tasks);
    else this.#parts.push([...tasks]);
  }

  /** Contexts that answer to `areOf`, and their runs; new ones are made, and listed by the step from here on. */
  contextsOf(areOf: (contexts: Contexts) => boolean, make: () => Contexts) {
    const known = this.#contexts.find(({ contexts }) => areOf(contexts));
    if (known !== undefined) return known;
    const contexts = make();
    const runs = contexts.ofDecodes(`runs ${this.#contexts.length}`);
    this.addCall(() => runs.list());
    const added = { contexts, runs };
    this.#contexts.push(added);
    return added;
  }

  launch(): void {
    for (const part of this.#parts) {
      if (typeof part === "function") part();
      else this.pool.repeat(part);
    }
  }

  dispose(): void {
    this.#parts.length = 0;
  }
}
