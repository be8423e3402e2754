import type { Tensor } from "../backend/tensor.ts";
import { invariant } from "../base/errors.ts";
import { lengthOf, shareOf } from "../base/shard.ts";
import type { ForwardContext } from "./forward-context.ts";
import type { Parameters } from "./parameters.ts";

/** A vector [H] for each token of the vocabulary. Ranks divide the vocabulary. */
export class Embedding {
  /** [V, H], with V the tokens of this rank. */
  readonly table: Tensor;
  /** The first of them; undefined where one rank has all. */
  readonly firstToken: number | undefined;

  /** @param source the checkpoint's name without `.weight`. */
  constructor(parameters: Parameters, name: string, source: string, vocabSize: number, hiddenSize: number) {
    const span = shareOf(vocabSize, parameters.shard);
    const rows = lengthOf(span);
    const slice = rows < vocabSize && { slice: { dim: 0, ...span } as const };
    this.firstToken = rows < vocabSize ? span.start : undefined;
    this.table = parameters.get({
      name: `${name}.weight`,
      shape: [rows, hiddenSize],
      isMatrix: true,
      sources: [{ name: `${source}.weight`, shape: [vocabSize, hiddenSize], ...slice }],
      dummy: "normal",
    });
  }

  /** out[T, H] = the vectors of ids[T], times `scale`. */
  forward({ backend, workspace }: ForwardContext, out: Tensor, ids: Tensor, scale = 1): void {
    if (this.firstToken === undefined) {
      backend.embedding(out, this.table, ids, undefined, scale);
      return;
    }
    invariant(backend.allReduceAdd !== undefined, "ranks need a backend that sums over them");
    // Each token is one rank's: the terms of all others are zeros.
    const branch = workspace.tensor("branch", out.dtype, out.shape);
    backend.embedding(branch, this.table, ids, this.firstToken, scale);
    backend.fill(out, 0);
    backend.allReduceAdd(out, branch);
  }
}
