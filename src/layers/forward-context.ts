import type { Backend, BatchTensors, LayerCache } from "../backend/backend.ts";
import type { StateCache } from "../backend/delta-net.ts";
import type { Workspace } from "../backend/workspace.ts";

/** The surroundings of ops outside a forward pass. */
export type OpContext = Pick<ForwardContext, "backend" | "workspace">;

/** The surroundings of a forward pass, the same for all of its layers. */
export interface ForwardContext {
  readonly backend: Backend;
  readonly workspace: Workspace;
  readonly batch: BatchTensors;
  /** Of each layer with attention. */
  readonly kvCache: readonly LayerCache[];
  /** Of each layer that keeps a state. Default: there are none. */
  readonly stateCaches?: readonly StateCache[] | undefined;
}
