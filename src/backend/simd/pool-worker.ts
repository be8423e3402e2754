import * as layout from "../../../kernels-wasm/layout.ts";
import { instantiate, type Kernels } from "./place.ts";

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
  work(words, thread);
};

/** Takes part in tasks until there is a message, or the pool ends. */
function work(words: Int32Array, thread: number): void {
  const load = (address: number) => Atomics.load(words, address / 4);
  try {
    let [rung, isAwake] = [0, true];
    while (load(layout.ENDED) === 0 && load(layout.MESSAGES) === places.length) {
      const known = rung;
      rung = places[0]!.listen(known, isAwake);
      isAwake = rung !== known;
      places[load(layout.PLACE)]?.run(thread);
    }
  } catch {
    // A unit that has been claimed will never be done: whoever waits for it must know.
    Atomics.store(words, layout.FAILED / 4, 1);
  }
}
