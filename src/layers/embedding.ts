import type { Tensor } from "../backend/tensor.ts";
import { lengthOf, shareOf } from "../base/shard.ts";
import type { ForwardContext } from "./forward-context.ts";
import type { Parameters } from "./parameters.ts";

/** A vector [H] for each token of the vocabulary. Ranks divide the vocabulary. */
export class Embedding {
  /** [V, H], with V the tokens of this rank. */
  readonly table: Tensor;

  /** @param source the checkpoint's name without `.weight`. */
  constructor(parameters: Parameters, name: string, source: string, vocabSize: number, hiddenSize: number) {
    const span = shareOf(vocabSize, parameters.shard);
    const rows = lengthOf(span);
    const slice = rows < vocabSize && { slice: { dim: 0, ...span } as const };
    this.table = parameters.get({
      name: `${name}.weight`,
      shape: [rows, hiddenSize],
      sources: [{ name: `${source}.weight`, shape: [vocabSize, hiddenSize], ...slice }],
      dummy: "normal",
    });
  }

  /** out[T, H] = the vectors of ids[T]. */
  forward({ backend }: ForwardContext, out: Tensor, ids: Tensor): void {
    backend.embedding(out, this.table, ids);
  }
}
