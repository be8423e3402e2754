import { checkAttend, checkLinear } from "../../checks.ts";
import type { DecodeLayers } from "./decode-layers.ts";
import {
  type AttendCall,
  CALLS_OF_LAYER,
  continuesLayer,
  type LayerCall,
  type LinearCall,
  layerOf,
  repeats,
} from "./layer-ops.ts";

/** Launches of single calls. */
export interface SingleCalls {
  linear(call: LinearCall): void;
  attend(call: AttendCall): void;
}

/**
 * The calls that have been held back. A model calls one op at a time; where a call could belong to a layer of a decode
 * step with few rows, it is held back until the next one shows whether it does. When a call comes that does not go on, whole
 * layers become one launch of `DecodeLayers`, and what is left is launched call by call. Every other op, copy or wait must
 * `flush` first, so that order is kept.
 */
export class PendingLayers {
  #calls: LayerCall[] = [];

  constructor(
    private readonly layers: DecodeLayers,
    private readonly singles: SingleCalls,
  ) {}

  /** Holds the call back, or returns false for one that is not of a layer; then nothing is held back. */
  add(stream: number, call: LayerCall): boolean {
    if (!this.layers.takes(call)) {
      this.flush(stream);
      return false;
    }
    this.#check(call);
    if (!this.#goesOn(call)) {
      this.flush(stream);
      if (!this.#goesOn(call)) return false;
    }
    this.#calls.push(call);
    return true;
  }

  /** Launches all. */
  flush(stream: number): void {
    const calls = this.#calls;
    if (calls.length === 0) return;
    this.#calls = [];
    const whole = Math.floor(calls.length / CALLS_OF_LAYER);
    const layers = Array.from({ length: whole }, (_, i) =>
      layerOf(calls.slice(i * CALLS_OF_LAYER, (i + 1) * CALLS_OF_LAYER)),
    );
    this.layers.launch(stream, layers);
    for (const call of calls.slice(whole * CALLS_OF_LAYER)) {
      if (call.kind === "linear") this.singles.linear(call);
      else this.singles.attend(call);
    }
  }

  /** Forgets all, after a failure. */
  discard(): void {
    this.#calls = [];
  }

  #goesOn(call: LayerCall): boolean {
    const position = this.#calls.length % CALLS_OF_LAYER;
    const isRepeated = this.#calls.length < CALLS_OF_LAYER || repeats(this.#calls[position]!, call);
    return isRepeated && continuesLayer(this.#calls.slice(this.#calls.length - position), call);
  }

  /** Mistakes are reported where they are made, not when the call is launched. */
  #check(call: LayerCall): void {
    const { dtype } = this.layers;
    if (call.kind === "linear") checkLinear(dtype, call.out, call.x, call.weight, call.fusion);
    else checkAttend(dtype, call.out, call.qkv, call.cache, call.batch, call.spec);
  }
}
