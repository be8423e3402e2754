import { invariant } from "../../base/errors.ts";
import type { CapturedGraph } from "../backend.ts";
import type { Contexts, Runs } from "./contexts.ts";
import type { RecordedTask, ThreadPool } from "./thread-pool.ts";

/** A captured step: the tasks of its ops, and calls of what the host computes itself, in their order. */
export class CapturedStep implements CapturedGraph {
  readonly #parts: (RecordedTask[] | (() => void))[] = [];
  /** The contexts that its layers attend to: layers that see the same ones share their runs. */
  readonly #contexts: { readonly contexts: Contexts; readonly runs: Runs }[] = [];
  #isDisposed = false;

  constructor(
    private readonly pool: ThreadPool,
    /** Memory that its tasks name has moved: what lies at their addresses may be something else's. */
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

  /** The contexts for which `areOf` holds, and their runs; else those that `make` returns, which each launch lists at this point. */
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
    invariant(!this.#isDisposed, "captured step used after dispose()");
    for (const part of this.#parts) {
      if (typeof part === "function") part();
      else this.pool.repeat(part);
    }
  }

  dispose(): void {
    this.#isDisposed = true;
    this.#parts.length = 0;
    this.#contexts.length = 0;
  }
}
