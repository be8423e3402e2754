import * as layout from "../../../kernels-wasm/layout.ts";
import { instantiate, type Kernels } from "./place.ts";
import { takePart } from "./take-part.ts";

declare const self: Worker;

/** A place that tasks may be about; in the order of the pool. */
export interface PoolMessage {
  readonly module: WebAssembly.Module;
  readonly memory: WebAssembly.Memory;
  /** Address of assembled code, 0 for none. */
  readonly code: number;
  /** This thread's number, from 1 on. */
  readonly thread: number;
}

const places: Kernels[] = [];
/** Words of the first place, where the bell is. */
let words: Int32Array | undefined;

self.onmessage = ({ data: { module, memory, code, thread } }: MessageEvent<PoolMessage>) => {
  words ??= new Int32Array(memory.buffer, 0, layout.FIRST_FREE / 4);
  places.push(instantiate(module, memory, code));
  takePart(places, words, thread);
};
