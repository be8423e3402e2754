import type { AttentionSpec, BatchTensors } from "../../backend.ts";

/** The arguments that all attention kernels take: where a row's context lies, and what its queries see of it. */
export function attentionArguments(
  { blockTables, rowSlots, contextLens }: BatchTensors,
  spec: AttentionSpec,
) {
  return {
    block_tables: blockTables,
    row_slots: rowSlots,
    context_lens: contextLens,
    max_blocks: blockTables.dim(1),
    scale_log2: spec.scale * Math.LOG2E,
    window: spec.window,
  };
}
