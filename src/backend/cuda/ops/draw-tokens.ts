import type { LinearFusion, LmHead, SampleRows, SlotTensors } from "../../backend.ts";
import type { DeviceBuffer, Tensor } from "../../tensor.ts";
import type { Weight } from "../../weight.ts";
import { Scratch } from "../scratch.ts";
import type { CapLogitsOps } from "./cap-logits.ts";
import type { DrawSmall } from "./draw-small.ts";
import type { DrawWgmma } from "./draw-wgmma.ts";
import { NOISE_GROUP, type SamplingOps } from "./sampling.ts";

export interface DrawTokensParts {
  /** The draw in the head's epilogue, where the GPU has what it needs and a row may depend on how many others there are. */
  readonly small: DrawSmall | undefined;
  readonly wgmma: DrawWgmma | undefined;
  readonly linear: (out: Tensor, x: Tensor, weight: Weight, fusion: LinearFusion) => void;
  readonly capLogits: CapLogitsOps;
  readonly sampling: SamplingOps;
  /** See `Backend.gatherColumns`. */
  readonly gatherColumns: (out: Tensor, part: Tensor) => void;
  /** Device memory that the backend frees. */
  readonly allocate: (byteLength: number) => DeviceBuffer;
}

/** `Backend.drawTokens`: one kernel of product and draw where there is one for the head, else the product and what draws from it. */
export class DrawTokens {
  /** This rank's part of the logits that tokens are drawn from. */
  readonly #part: Scratch;

  constructor(private readonly parts: DrawTokensParts) {
    this.#part = new Scratch(parts.allocate);
  }

  /** Enqueues the op for at least one row; its checks have passed. */
  launch(
    stream: number,
    out: Tensor,
    hidden: Tensor,
    head: LmHead,
    logits: Tensor,
    samples: SampleRows,
    slots: SlotTensors,
  ): void {
    const { small, wgmma, sampling, gatherColumns } = this.parts;
    const { weight, firstToken } = head;
    const dense = weight.format === "dense" ? { ...head, weight } : undefined;
    if (dense && small?.launch(stream, out, hidden, dense, samples, slots)) return;
    if (dense && wgmma?.launch(stream, out, hidden, dense, samples, slots)) return;
    if (firstToken === undefined) {
      this.#multiply(stream, logits, hidden, head);
      sampling.sample(stream, out, logits, logits, samples, slots);
      return;
    }
    const width = weight.shape[0];
    const part = this.#part.tensor("float32", [hidden.dim(0), width]);
    this.#multiply(stream, part, hidden, head);
    if (width % NOISE_GROUP === 0) {
      sampling.drawPart(stream, out, part, firstToken, samples, slots);
      return;
    }
    gatherColumns(logits, part);
    sampling.sample(stream, out, logits, logits, samples, slots);
  }

  #multiply(stream: number, logits: Tensor, hidden: Tensor, { weight, norm, softCap }: LmHead): void {
    this.parts.linear(logits, hidden, weight, { norm });
    if (softCap !== undefined) this.parts.capLogits.capLogits(stream, logits, softCap);
  }
}
