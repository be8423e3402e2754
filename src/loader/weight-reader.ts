import { InvariantError, ModelDataError } from "../base/errors.ts";
import { workerScript } from "../base/program-file.ts";
import type { ChunkRead } from "./chunk-reader.ts";
import type { RowsRead } from "./rows-read.ts";

/** A message to a reader's Worker: the chunk to read and the memory to fill. */
export interface ReadTask {
  readonly chunk: ChunkRead | RowsRead;
  readonly address: number;
  readonly byteLength: number;
}

/** The Worker's answer to a task, in the order of the tasks. Errors lose their class on the way, so their text travels. */
export interface ReadReply {
  readonly problem?: string;
}

/** A Worker that reads chunks into memory of this process. */
export class WeightReader implements Disposable {
  readonly #worker = new Worker(workerScript("src/loader/weight-reader-worker.ts"));
  readonly #waiting: { readonly path: string; readonly done: PromiseWithResolvers<void> }[] = [];
  #closed = false;
  #lastWords = "it exited";

  constructor() {
    this.#worker.onmessage = ({ data }: MessageEvent<ReadReply>) => {
      const { path, done } = this.#waiting.shift()!;
      if (data.problem === undefined) done.resolve();
      else done.reject(new ModelDataError(path, data.problem));
    };
    this.#worker.onerror = ({ message }) => {
      this.#lastWords = message;
      this.#worker.terminate();
    };
    // Only when its thread has ended is it certain that a dead Worker writes no more.
    this.#worker.addEventListener("close", () => {
      this.#closed = true;
      for (const { done } of this.#waiting.splice(0)) done.reject(this.#death());
    });
  }

  /**
   * Reads a chunk into the `byteLength` bytes at `address`; nobody else may touch them until this settles. Calls may
   * overlap: the Worker takes them in order.
   * @throws ModelDataError when the file cannot be read; InvariantError when the Worker has died.
   */
  async read(chunk: ChunkRead | RowsRead, address: number, byteLength: number): Promise<void> {
    if (this.#closed) throw this.#death();
    const done = Promise.withResolvers<void>();
    this.#waiting.push({ path: "reading" in chunk ? chunk.tensor.path : chunk.path, done });
    this.#worker.postMessage({ chunk, address, byteLength } satisfies ReadTask);
    return done.promise;
  }

  /** Ends the Worker. Call it when no read is under way. */
  [Symbol.dispose](): void {
    this.#worker.terminate();
  }

  #death(): InvariantError {
    return new InvariantError(`a weight reader died: ${this.#lastWords}`);
  }
}
