import * as layout from "../../../kernels-wasm/layout.ts";
import { DeviceError } from "../../base/errors.ts";
import { compileKernels, Place } from "./place.ts";
import { ThreadPool } from "./thread-pool.ts";

/** Read at once by a thread. */
const UNIT = 2 ** 22;
const RESULT_BYTES = 16;

/** Memory to read and how often. */
export interface BandwidthOptions {
  readonly threads: number;
  /** A multiple of 4 MiB, far beyond any cache. Default 256 MiB. */
  readonly bytes?: number;
  /** The best of which counts. Default 5. */
  readonly runs?: number;
}

/**
 * Bytes a second that threads read of memory: what decoding cannot be faster than, since a token reads all weights. The kernels'
 * plainest loop reads it, 16 bytes at a time.
 * @throws DeviceError when there is no memory for it, or no WebAssembly SIMD
 */
export async function measureBandwidth({
  threads,
  bytes = 2 ** 28,
  runs = 5,
}: BandwidthOptions): Promise<number> {
  const module = compileKernels();
  const place = new Place(module, 2 * bytes + threads * layout.SCRATCH_BYTES, threads);
  const memory = place.take(bytes, 0);
  if (memory === undefined) throw new DeviceError(`no memory to read ${bytes} bytes of`);
  const pool = new ThreadPool(module, threads);
  pool.add(place);
  // Pages that were never written are all the same one.
  new Uint8Array(place.bytes, memory.address, bytes).fill(1);
  const results = place.scratch("results", (bytes / UNIT) * RESULT_BYTES);
  let best = 0;
  for (let run = 0; run < runs; run++) {
    const start = performance.now();
    pool.run(place, {
      kernel: layout.READ,
      units: bytes / UNIT,
      work: bytes,
      write: (args) => args.words(0, memory.address, UNIT, results),
    });
    best = Math.max(best, (1000 * bytes) / (performance.now() - start));
    // Threads start meanwhile.
    await Bun.sleep(10);
  }
  pool.dispose();
  place.dispose();
  return best;
}
