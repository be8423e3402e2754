import { InvariantError } from "../base/errors.ts";
import { CudaError } from "./errors.ts";

/**
 * A native resource with one owner. Disposing of it twice is safe; using it afterwards throws. An owner disposes of
 * what it still owns first, youngest first.
 */
export abstract class Handle implements Disposable {
  readonly #owner: Handle | undefined;
  readonly #owned = new Set<Handle>();
  #value: number;

  protected constructor(value: number, owner?: Handle) {
    this.#value = value;
    this.#owner = owner;
    if (owner !== undefined) owner.#owned.add(this);
  }

  /** The native handle or address. */
  get value(): number {
    if (this.#value === 0) throw new InvariantError(`${this.constructor.name} used after it was disposed of`);
    return this.#value;
  }

  get isDisposed(): boolean {
    return this.#value === 0;
  }

  dispose(): void {
    const value = this.#value;
    if (value === 0) return;
    const errors: unknown[] = [];
    for (const child of [...this.#owned].reverse()) attempt(() => child.dispose(), errors);
    this.#value = 0;
    if (this.#owner !== undefined) this.#owner.#owned.delete(this);
    attempt(() => this.release(value), errors);
    if (errors.length > 0) throw errors[0];
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** Gives the native resource back; called once. */
  protected abstract release(value: number): void;
}

/**
 * Runs `step`, keeping what it throws. A poisoned context fails every release, and whoever poisoned it has been told:
 * those errors are dropped, so that disposal never hides the first one.
 */
function attempt(step: () => void, errors: unknown[]): void {
  try {
    step();
  } catch (error) {
    if (!(error instanceof CudaError && error.fatal)) errors.push(error);
  }
}
