import type { Backend, BatchTensors, LayerCache } from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import type { Workspace } from "../backend/workspace.ts";

/** What every layer of a forward pass needs besides its input. */
export interface ForwardContext {
  readonly backend: Backend;
  readonly workspace: Workspace;
  readonly batch: BatchTensors;
  /** One per layer. */
  readonly kvCache: readonly LayerCache[];
  /** Called after each decoder layer with its index and the residual stream [T, H]; for tests and debugging. */
  readonly onLayer?: (layer: number, residual: Tensor) => void;
}
