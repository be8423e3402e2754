import * as layout from "../../../kernels-wasm/layout.ts";
import type { Kernels } from "./place.ts";

/**
 * Takes part in tasks until there is a message, or the pool ends.
 * @param places that tasks may be about
 * @param words of the first, where the bell is
 */
export function takePart(places: readonly Kernels[], words: Int32Array, thread: number): void {
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
