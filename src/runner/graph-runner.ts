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

/** Tokens that prompts are padded to, ascending. Longer ones keep the GPU busy for longer than the host. */
export function promptBuckets(maxTokens: number): readonly number[] {
  return [32, 64, 128, 256].filter((tokens) => tokens <= maxTokens);
}

/**
 * The source of a captured step's tokens: straight from hidden states, or from logits that it processes. The latter in a graph of
 * its own when masks come in between.
 */
export type DrawKind = "plain" | "full" | "masked";

/** A captured step: all of it or, of a masked one, what comes before the masks and what comes after. */
export interface StepGraph {
  readonly begin: CapturedGraph;
  readonly draw: CapturedGraph | undefined;
  /** Memory that it works in has moved: it must be captured anew. */
  isStale(): boolean;
}

/** Graphs that are kept where every size has one: those that were launched last. */
const MOST_OF_EVERY_SIZE = 32;

export interface GraphLimits {
  readonly maxRows: number;
  readonly maxTokens: number;
}

/** Captured steps, of decode rows or of one prompt, for each kind of drawing. */
export class GraphRunner {
  /** The sizes that steps are padded to; undefined where every number of decode rows is one, and prompts have none. */
  readonly #buckets: { readonly decodes: readonly number[]; readonly prompts: readonly number[] } | undefined;
  /** The one that was asked for last is the last. */
  readonly #graphs = new Map<string, StepGraph>();
  /** Steps of a prompt that have come once. */
  readonly #seen = new Set<string>();

  /**
   * @param capture records a step. Plain decode steps are recorded at once, the largest first, so that smaller ones find the
   * memory it uses; others when they are first launched, and those of a prompt when they come again.
   * @param isOfEverySize see `Backend.capturesEverySize`: decode steps are recorded when they are first launched, and prompts run op by op
   */
  constructor(
    { maxRows, maxTokens }: GraphLimits,
    private readonly capture: (bucket: StepBucket, kind: DrawKind) => StepGraph,
    isOfEverySize = false,
  ) {
    if (isOfEverySize) return;
    this.#buckets = { decodes: decodeBuckets(maxRows), prompts: promptBuckets(maxTokens) };
    for (const decodeRows of [...this.#buckets.decodes].reverse()) this.find({ decodeRows }, "plain");
  }

  /** The bucket of a step of so many decode rows, or of one row of so many tokens; undefined if there is none. */
  bucketFor(decodeRows: number, promptTokens: number): StepBucket | undefined {
    if (this.#buckets === undefined) return promptTokens === 0 ? { decodeRows } : undefined;
    const { decodes, prompts } = this.#buckets;
    if (promptTokens === 0) {
      const rows = decodes.find((bucket) => bucket >= decodeRows);
      return rows === undefined ? undefined : { decodeRows: rows };
    }
    // Beside decode rows a prompt's step takes longer than its launch, which happens while the step before runs.
    if (decodeRows > 0) return undefined;
    const tokens = prompts.find((bucket) => bucket >= promptTokens);
    return tokens === undefined ? undefined : { promptTokens: tokens };
  }

  /** The graph of a bucket; undefined if its step is to be run op by op. */
  find(bucket: StepBucket, kind: DrawKind): StepGraph | undefined {
    const isPrompt = "promptTokens" in bucket;
    const key = isPrompt ? `prompt ${bucket.promptTokens} ${kind}` : `${bucket.decodeRows} ${kind}`;
    const known = this.#graphs.get(key);
    this.#graphs.delete(key);
    if (known !== undefined && !known.isStale()) {
      this.#graphs.set(key, known);
      return known;
    }
    if (known !== undefined) release(known);
    if (isPrompt && !this.#seen.has(key)) {
      this.#seen.add(key);
      return undefined;
    }
    let graph = this.capture(bucket, kind);
    // What it was the first to need may have moved what ops before it work in.
    while (graph.isStale()) {
      release(graph);
      graph = this.capture(bucket, kind);
    }
    this.#graphs.set(key, graph);
    this.#dropOldest();
    return graph;
  }

  #dropOldest(): void {
    if (this.#buckets !== undefined || this.#graphs.size <= MOST_OF_EVERY_SIZE) return;
    const oldest = this.#graphs.keys().next().value!;
    release(this.#graphs.get(oldest)!);
    this.#graphs.delete(oldest);
  }

  dispose(): void {
    for (const graph of this.#graphs.values()) release(graph);
    this.#graphs.clear();
  }
}

function release({ begin, draw }: StepGraph): void {
  begin.dispose();
  draw?.dispose();
}
