import type { AttentionSpec } from "../../attention-spec.ts";
import type { BatchTensors, KvScales } from "../../backend.ts";

/** The arguments of where a row's context lies, and how far back its queries see it. */
export function contextArguments(
  { blockTables, rowSlots, contextLens }: BatchTensors,
  { window }: AttentionSpec,
) {
  return {
    block_tables: blockTables,
    row_slots: rowSlots,
    context_lens: contextLens,
    max_blocks: blockTables.dim(1),
    window,
  };
}

/** The arguments of how products of queries and cached keys become probabilities; see `log2_score` in attention.cuh. */
export function scoreArguments({ scale, softCap, sinks }: AttentionSpec, { keyScale = 1 }: KvScales) {
  // Scores of what is cached are products with keys, not yet with their scale.
  const scaleLog2 = scale * keyScale * Math.LOG2E;
  return {
    scale_log2: softCap === undefined ? scaleLog2 : (2 * scaleLog2) / softCap,
    cap_log2: (softCap ?? 0) * Math.LOG2E,
    sinks: sinks ?? null,
  };
}
