import type { CapturedGraph } from "../backend/backend.ts";

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

/** How a captured step draws its tokens: straight from hidden states, or from logits that it processes. */
export type DrawKind = "plain" | "full";

/** Captured decode steps: one for each batch size of a list, and each kind of drawing. */
export class GraphRunner {
  readonly #graphs = {
    plain: new Map<number, CapturedGraph>(),
    full: new Map<number, CapturedGraph>(),
  } satisfies Record<DrawKind, unknown>;

  /**
   * @param capture records the decode step of a batch size. Plain ones are recorded at once, the largest first, so that
   * smaller ones find the memory it uses; full ones when they are first launched.
   */
  constructor(
    readonly buckets: readonly number[],
    private readonly capture: (bucket: number, kind: DrawKind) => CapturedGraph,
  ) {
    for (const bucket of [...buckets].sort((a, b) => b - a)) this.#graph(bucket, "plain");
  }

  /** The smallest captured batch size that holds `rows`; undefined when none does. */
  bucketFor(rows: number): number | undefined {
    return this.buckets.find((bucket) => bucket >= rows);
  }

  /** Enqueues the decode step of a captured batch size. */
  launch(bucket: number, kind: DrawKind): void {
    this.#graph(bucket, kind).launch();
  }

  dispose(): void {
    for (const graphs of Object.values(this.#graphs)) {
      for (const graph of graphs.values()) graph.dispose();
      graphs.clear();
    }
  }

  #graph(bucket: number, kind: DrawKind): CapturedGraph {
    const graphs = this.#graphs[kind];
    const known = graphs.get(bucket);
    if (known !== undefined) return known;
    const graph = this.capture(bucket, kind);
    graphs.set(bucket, graph);
    return graph;
  }
}
