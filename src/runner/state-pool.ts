import type { Backend } from "../backend/backend.ts";
import { channelsOf, type StateCache } from "../backend/delta-net.ts";
import type { Tensor } from "../backend/tensor.ts";
import { dtypeSize, type FloatDType } from "../base/dtype.ts";
import type { StateShape } from "../models/model.ts";

/** Bytes that a sequence's state takes over all layers. */
export function stateBytes(shape: StateShape, dtype: FloatDType): number {
  const { numLayers, numValueHeads, keyDim, valueDim, convWidth } = shape;
  const tail = (convWidth - 1) * channelsOf(shape) * dtypeSize(dtype);
  return numLayers * (tail + numValueHeads * keyDim * valueDim * dtypeSize("float32"));
}

/**
 * The states of sequences in layers that keep one in place of keys and values: a place for each slot, which a sequence has from its
 * first step until it leaves, and one for padding. A place holds what the sequence before left until a row begins anew.
 */
export class StatePool {
  /** By layer, in their order. */
  readonly layers: readonly StateCache[];
  readonly #tails: Tensor;
  readonly #states: Tensor;

  constructor(backend: Backend, shape: StateShape, maxNumSeqs: number) {
    const { numLayers, numValueHeads, keyDim, valueDim, convWidth } = shape;
    const perSlot = [maxNumSeqs + 1, numLayers];
    this.#tails = backend.empty(backend.activationDtype, [...perSlot, convWidth - 1, channelsOf(shape)]);
    this.#states = backend.empty("float32", [...perSlot, numValueHeads, keyDim, valueDim]);
    this.layers = Array.from({ length: numLayers }, (_, layer) => ({
      ...{ tails: this.#tails, states: this.#states, layer },
    }));
  }

  dispose(): void {
    this.#tails.buffer.dispose();
    this.#states.buffer.dispose();
  }
}
