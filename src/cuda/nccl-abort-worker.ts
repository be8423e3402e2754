import { openNccl, thisMachine } from "./open-cuda.ts";

/** The end of a communicator to abort, by its ncclComm_t. */
export interface AbortTask {
  readonly comm: number;
  /** See `openNccl`. */
  readonly driverMajor: number;
}

declare const self: Worker;

/** Aborts while the thread that owns the communicator goes on: the call returns when the graphs that use it are gone. */
self.onmessage = ({ data: { comm, driverMajor } }: MessageEvent<AbortTask>) => {
  openNccl(thisMachine(), driverMajor).api.ncclCommAbort(comm);
  process.exit(0);
};
