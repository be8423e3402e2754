import type { Shard } from "../base/shard.ts";
import type { Tensor } from "./tensor.ts";

/**
 * The exchange of tensors between the ranks of a model, one rank's side of it, below its backend. Calls are enqueued as the
 * backend's ops are. Every rank makes the same calls with the same shapes in the same order; what comes out is bit-equal on
 * all of them, but for the kind of NaN.
 *
 * Where a rank has failed, or stays away for too long, a call or the wait for it throws `EngineDeadError`: what the other ranks
 * hold is then of no use any more.
 */
export interface Communicator {
  readonly shard: Shard;
  /** residual += the sum of every rank's branch, of the same shape, in the order of the ranks; `branch` is undefined afterwards. */
  allReduceAdd(residual: Tensor, branch: Tensor): void;
  /** out [ranks, …part.shape] = every rank's part, bit by bit, in the order of the ranks. Any 4-byte dtype. */
  allGather(out: Tensor, part: Tensor): void;
}
