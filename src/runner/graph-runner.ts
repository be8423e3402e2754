import type { CapturedGraph } from "../backend/backend.ts";
import { InvariantError } from "../base/errors.ts";

/** Batch sizes that decode steps are padded to: few enough to capture at start-up, close enough to waste little. */
export function decodeBuckets(maxNumSeqs: number): readonly number[] {
  const buckets: number[] = [];
  for (let size = 1; size < maxNumSeqs; size = nextBucket(size)) buckets.push(size);
  return [...buckets, maxNumSeqs];
}

function nextBucket(size: number): number {
  if (size < 8) return 2 * size;
  if (size < 256) return size + (size < 16 ? 8 : 16);
  return size + 64;
}

/** One captured decode step for each batch size of a list. */
export class GraphRunner {
  readonly #graphs = new Map<number, CapturedGraph>();

  /**
   * @param capture records the decode step of a batch size. The largest comes first, so that smaller ones find the
   * memory it uses.
   */
  constructor(
    readonly buckets: readonly number[],
    capture: (bucket: number) => CapturedGraph,
  ) {
    for (const bucket of [...buckets].sort((a, b) => b - a)) this.#graphs.set(bucket, capture(bucket));
  }

  /** The smallest captured batch size that holds `rows`; undefined when none does. */
  bucketFor(rows: number): number | undefined {
    return this.buckets.find((bucket) => bucket >= rows);
  }

  /** Enqueues the decode step of a captured batch size. */
  launch(bucket: number): void {
    const graph = this.#graphs.get(bucket);
    if (graph === undefined) throw new InvariantError(`no graph was captured for ${bucket} rows`);
    graph.launch();
  }

  dispose(): void {
    for (const graph of this.#graphs.values()) graph.dispose();
    this.#graphs.clear();
  }
}
