import { UnsupportedModelError } from "../../../base/errors.ts";
import type { DeltaNetShape, DeltaNetOps as Ops } from "../../delta-net.ts";
import type { KernelUnit } from "../kernel-source.ts";

/** The ops of layers that keep a state. No kernels yet: models that have such layers are refused when they are loaded. */
export class DeltaNetOps {
  /** @throws UnsupportedModelError */
  units(_: DeltaNetShape): KernelUnit[] {
    throw new UnsupportedModelError("config.json", "linear attention is not supported on cuda yet");
  }

  deltaNet(_: number, ...__: Parameters<Ops["deltaNet"]>): void {
    this.units(__[5]);
  }

  gateElements(_: number, ...__: Parameters<Ops["gateElements"]>): void {
    throw new UnsupportedModelError("config.json", "gated attention is not supported on cuda yet");
  }
}
