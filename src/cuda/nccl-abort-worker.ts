import { openNccl, thisMachine } from "./open-cuda.ts";

/** The end of a communicator to abort, by its ncclComm_t. */
export interface AbortTask {
  readonly comm: number;
  /** See `openNccl`. */
  readonly driverMajor: number;
  /** A word, 1 when it has returned. */
  readonly returned: SharedArrayBuffer;
}

declare const self: Worker;

/** Aborts while the thread that owns the communicator goes on: the call returns when the graphs that use it are gone. */
self.onmessage = ({ data: { comm, driverMajor, returned } }: MessageEvent<AbortTask>) => {
  openNccl(thisMachine(), driverMajor).api.ncclCommAbort(comm);
  const word = new Int32Array(returned);
  Atomics.store(word, 0, 1);
  Atomics.notify(word, 0);
  process.exit(0);
};
