import type { AttentionSpec } from "../../attention-spec.ts";
import type { BatchTensors, KvScales } from "../../backend.ts";

/** The arguments that all attention kernels take: where a row's context lies, and what its queries see of it. */
export function attentionArguments(
  { blockTables, rowSlots, contextLens }: BatchTensors,
  spec: AttentionSpec,
  { keyScale = 1 }: KvScales,
) {
  return {
    block_tables: blockTables,
    row_slots: rowSlots,
    context_lens: contextLens,
    max_blocks: blockTables.dim(1),
    // Scores of what is cached are products with keys, not yet with their scale.
    scale_log2: spec.scale * keyScale * Math.LOG2E,
    window: spec.window,
  };
}
