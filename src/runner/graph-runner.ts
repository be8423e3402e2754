import type { CapturedGraph } from "../backend/backend.ts";
import type { StepBucket } from "./step-buffers.ts";

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

/** Tokens that the prompt of a captured step is padded to. Longer ones keep the GPU busy for longer than the host. */
const PROMPT_BUCKETS = [32, 128, 256];

/** How a captured step draws its tokens: straight from hidden states, or from logits that it processes. */
export type DrawKind = "plain" | "full";

export interface GraphLimits {
  readonly maxRows: number;
  readonly maxTokens: number;
}

/** Captured steps: of decode rows, and of some beside one prompt; for each kind of drawing. */
export class GraphRunner {
  readonly #decodeBuckets: readonly number[];
  readonly #graphs = new Map<string, CapturedGraph>();
  /** Steps with a prompt that have come once. */
  readonly #seen = new Set<string>();

  /**
   * @param capture records a step. Plain ones without a prompt are recorded at once, the largest first, so that smaller ones
   * find the memory it uses; full ones when they are first launched, and those with a prompt when they come again.
   */
  constructor(
    private readonly limits: GraphLimits,
    private readonly capture: (bucket: StepBucket, kind: DrawKind) => CapturedGraph,
  ) {
    this.#decodeBuckets = decodeBuckets(limits.maxRows);
    for (const decodeRows of [...this.#decodeBuckets].reverse())
      this.find({ decodeRows, promptTokens: 0 }, "plain");
  }

  /** The bucket of a step with so many decode rows, and a prompt of so many tokens unless that is 0; undefined if there is none. */
  bucketFor(decodeRows: number, promptTokens: number): StepBucket | undefined {
    const { maxRows, maxTokens } = this.limits;
    if (promptTokens === 0) {
      const rows = this.#decodeBuckets.find((bucket) => bucket >= decodeRows);
      return rows === undefined ? undefined : { decodeRows: rows, promptTokens };
    }
    const prompt = PROMPT_BUCKETS.find((bucket) => bucket >= promptTokens);
    // Fewer sizes than of decode steps: each is also recorded for every size of prompt.
    const rows = decodeRows === 0 ? 0 : Math.min(2 ** Math.ceil(Math.log2(decodeRows)), maxRows - 1);
    if (prompt === undefined || rows < decodeRows || rows + prompt > maxTokens) return undefined;
    return { decodeRows: rows, promptTokens: prompt };
  }

  /** The graph of a bucket; undefined if its step is to be run op by op. */
  find(bucket: StepBucket, kind: DrawKind): CapturedGraph | undefined {
    const key = `${bucket.decodeRows}+${bucket.promptTokens} ${kind}`;
    const known = this.#graphs.get(key);
    if (known !== undefined) return known;
    if (bucket.promptTokens > 0 && !this.#seen.has(key)) {
      this.#seen.add(key);
      return undefined;
    }
    const graph = this.capture(bucket, kind);
    this.#graphs.set(key, graph);
    return graph;
  }

  dispose(): void {
    for (const graph of this.#graphs.values()) graph.dispose();
    this.#graphs.clear();
  }
}
