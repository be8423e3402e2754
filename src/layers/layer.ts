import type { Backend, BatchTensors, LayerCache } from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import type { Workspace } from "../backend/workspace.ts";
import { invariant } from "../base/errors.ts";

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

/** The loaded parameters of a model, by Octavo's names. */
export class Parameters {
  constructor(private readonly tensors: ReadonlyMap<string, Tensor>) {}

  get(name: string): Tensor {
    const tensor = this.tensors.get(name);
    invariant(tensor !== undefined, `parameter "${name}" was not loaded`);
    return tensor;
  }

  find(name: string): Tensor | undefined {
    return this.tensors.get(name);
  }
}
