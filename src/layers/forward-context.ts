import type { Backend, BatchTensors, LayerCache } from "../backend/backend.ts";
import type { Workspace } from "../backend/workspace.ts";

/** The surroundings of ops outside a forward pass. */
export type OpContext = Pick<ForwardContext, "backend" | "workspace">;

/** The surroundings of a forward pass, the same for all of its layers. */
export interface ForwardContext {
  readonly backend: Backend;
  readonly workspace: Workspace;
  readonly batch: BatchTensors;
  /** One per layer. */
  readonly kvCache: readonly LayerCache[];
}
