import type { Backend } from "../backend/backend.ts";
import { channelsOf, type StateCache } from "../backend/delta-net.ts";
import type { Tensor } from "../backend/tensor.ts";
import { dtypeSize, type FloatDType } from "../base/dtype.ts";
import type { StateShape } from "../models/model.ts";

/** Bytes that a sequence's state takes over all layers. */
export function stateBytes(shape: StateShape, dtype: FloatDType): number {
  const { numLayers, numValueHeads, keyDim, valueDim, convWidth } = shape;
  const tail = convWidth * channelsOf(shape) * dtypeSize(dtype);
  return numLayers * (tail + numValueHeads * keyDim * valueDim * dtypeSize("float32"));
}

/** Tokens between the borders at which snapshots are made, at least: fewer are not worth a place. */
const LEAST_INTERVAL = 64;

/** Tokens between borders, which are whole blocks. */
export function snapshotInterval(blockSize: number): number {
  return Math.ceil(LEAST_INTERVAL / blockSize) * blockSize;
}

/**
 * The states of sequences in layers that keep one in place of keys and values: a place for each slot, which a sequence has from its
 * first step until it leaves, one for padding, and those for snapshots. A slot's place holds what the sequence before left until a row
 * begins anew.
 */
export class StatePool {
  /** By layer, in their order. */
  readonly layers: readonly StateCache[];
  readonly #tails: Tensor;
  readonly #states: Tensor;

  constructor(
    private readonly backend: Backend,
    shape: StateShape,
    private readonly maxNumSeqs: number,
    numSnapshots: number,
  ) {
    const { numLayers, numValueHeads, keyDim, valueDim, convWidth } = shape;
    const perSlot = [maxNumSeqs + 1 + numSnapshots, numLayers];
    this.#tails = backend.empty(backend.activationDtype, [...perSlot, convWidth, channelsOf(shape)]);
    this.#states = backend.empty("float32", [...perSlot, numValueHeads, keyDim, valueDim]);
    this.layers = Array.from({ length: numLayers }, (_, layer) => ({
      ...{ tails: this.#tails, states: this.#states, layer },
    }));
  }

  /** The snapshot becomes the slot's state. */
  restore(slot: number, snapshot: number): void {
    this.#copy(slot, this.#placeOf(snapshot));
  }

  /** The slot's state becomes the snapshot. */
  keep(slot: number, snapshot: number): void {
    this.#copy(this.#placeOf(snapshot), slot);
  }

  #placeOf(snapshot: number): number {
    return this.maxNumSeqs + 1 + snapshot;
  }

  #copy(target: number, source: number): void {
    for (const all of [this.#tails, this.#states])
      this.backend.copy(all.rows(target, target + 1), all.rows(source, source + 1));
  }

  dispose(): void {
    this.#tails.buffer.dispose();
    this.#states.buffer.dispose();
  }
}
