import type { Backend } from "../backend/backend.ts";
import type { StateCache } from "../backend/delta-net.ts";
import type { Tensor } from "../backend/tensor.ts";
import type { Workspace } from "../backend/workspace.ts";
import type { CausalLM } from "../models/model.ts";
import type { BatchState } from "./batch-state.ts";
import type { KvCache } from "./kv-cache.ts";
import type { Mailbox } from "./mailbox.ts";
import type { StepTensors } from "./step-buffers.ts";

/** Objects that the parts of a step work on. */
export interface StepContext {
  readonly backend: Backend;
  readonly model: CausalLM;
  readonly workspace: Workspace;
  readonly state: BatchState;
  readonly mailbox: Mailbox;
  readonly stateCaches: readonly StateCache[];
}

/** The parts of a step, each enqueued when it is called: at once, or into a graph that is being captured. */
export class StepOps {
  constructor(private readonly context: StepContext) {}

  /** Begins the step that the mailbox holds: slots of its rows advance. The residual stream [T, H] after the last layer. */
  forward({ batch, batches, samples }: StepTensors, cache: KvCache): Tensor {
    const { backend, model, workspace, state, mailbox, stateCaches } = this.context;
    backend.prepareBatch(batch, samples, mailbox.inbox, state.slots);
    const [first] = batches;
    return model.forward({ backend, workspace, batch: first!, batches, kvCache: cache.layers, stateCaches });
  }

  /** Draws and posts a token for each sample of the step, none of which needs logits. */
  drawPlain(step: StepTensors, hidden: Tensor): void {
    const { backend, model, state, mailbox } = this.context;
    const { samples, logits, sampled } = step;
    model.drawTokens(this.context, sampled, this.#sampledHidden(step, hidden), logits, samples, state.slots);
    backend.post(mailbox.tokens, sampled);
  }

  /** The same for samples that may need logits, which are in `step.logits` afterwards, unprocessed. */
  draw(step: StepTensors, hidden: Tensor): void {
    const { backend, model, state, mailbox } = this.context;
    const { samples, logits, processed, sampled } = step;
    model.logits(this.context, logits, this.#sampledHidden(step, hidden));
    backend.processLogits(processed, logits, samples, state.slots);
    backend.sample(sampled, logits, processed, samples, state.slots);
    backend.post(mailbox.tokens, sampled);
  }

  /** Fills out float32 [N, V] with the logits after the batch's tokens at indices[N]. */
  logits(out: Tensor, hidden: Tensor, indices: Tensor): Tensor {
    this.context.model.logits(this.context, out, this.#gather(hidden, indices));
    return out;
  }

  /** The hidden states [N, H] of the batch's tokens at indices[N] after the final norm, until the next call. */
  states(hidden: Tensor, indices: Tensor): Tensor {
    return this.context.model.states(this.context, this.#gather(hidden, indices));
  }

  /** hidden[T, H] at the step's samples, [N, H]. Where every token is sampled after, they are in order. */
  #sampledHidden({ batch, samples, sampled }: StepTensors, hidden: Tensor): Tensor {
    return sampled.size === batch.numTokens ? hidden : this.#gather(hidden, samples.tokenIndices);
  }

  #gather(hidden: Tensor, indices: Tensor): Tensor {
    const { backend, workspace } = this.context;
    const gathered = workspace.tensor("gathered", hidden.dtype, [indices.dim(0), hidden.dim(1)]);
    backend.gatherRows(gathered, hidden, indices);
    return gathered;
  }
}
