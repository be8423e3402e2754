import { invariant } from "../../base/errors.ts";
import type { Shard } from "../../base/shard.ts";
import type { Exchange } from "../../ranks/exchange.ts";
import type { Communicator } from "../communicator.ts";
import type { Tensor } from "../tensor.ts";
import { bytes, floats } from "./host-buffer.ts";

/** Ranks that are threads of one process and whose tensors are in host memory. A call returns when its result is there. */
export class SharedMemoryCommunicator implements Communicator {
  readonly shard: Shard;

  constructor(private readonly exchange: Exchange) {
    this.shard = exchange.shard;
  }

  /** Sums are float64, rounded once, and then added: a rank that is alone adds what it has rounded, too. */
  allReduceAdd(residual: Tensor, branch: Tensor): void {
    const sum = floats(residual);
    this.exchange.share(bytes(branch), (pieces, offset) => {
      const terms = pieces.map(
        ({ buffer, byteOffset, length }) => new Float32Array(buffer, byteOffset, length / 4),
      );
      const start = offset / 4;
      const count = terms[0]!.length;
      for (let i = 0; i < count; i++) {
        let total = 0;
        for (const term of terms) total += term[i]!;
        sum[start + i]! += Math.fround(total);
      }
    });
  }

  allGather(out: Tensor, part: Tensor): void {
    const { size } = this.shard;
    invariant(out.byteLength === size * part.byteLength, `${size} times ${part} does not make ${out}`);
    const target = bytes(out);
    this.exchange.share(bytes(part), (pieces, offset) => {
      for (const [rank, piece] of pieces.entries()) target.set(piece, rank * part.byteLength + offset);
    });
  }
}
