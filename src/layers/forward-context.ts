import type { Backend, BatchTensors, LayerCache } from "../backend/backend.ts";
import type { StateCache } from "../backend/delta-net.ts";
import type { Workspace } from "../backend/workspace.ts";

/** The surroundings of ops outside a forward pass. */
export type OpContext = Pick<ForwardContext, "backend" | "workspace">;

/** The surroundings of a forward pass, the same for all of its layers. */
export interface ForwardContext {
  readonly backend: Backend;
  readonly workspace: Workspace;
  /** As layers of the first group see it. */
  readonly batch: BatchTensors;
  /** As those of each group do. Default: there is one group. */
  readonly batches?: readonly BatchTensors[] | undefined;
  /** Of each layer with attention. */
  readonly kvCache: readonly LayerCache[];
  /** Of each layer that keeps a state. Default: there are none. */
  readonly stateCaches?: readonly StateCache[] | undefined;
}

/** The batch as a layer sees it that has this cache. */
export function batchFor({ batch, batches }: ForwardContext, { group = 0 }: LayerCache): BatchTensors {
  return batches === undefined ? batch : batches[group]!;
}
