import { availableParallelism } from "node:os";
import * as layout from "../../../kernels-wasm/layout.ts";
import { formatBytes } from "../../base/bytes.ts";
import { DeviceError, invariant } from "../../base/errors.ts";
import type { AttentionSpec } from "../attention-spec.ts";
import type { BatchTensors, LayerCache, LinearFusion, SampleRows, SlotTensors } from "../backend.ts";
import * as checks from "../checks.ts";
import type { Communicator } from "../communicator.ts";
import { gatedActivation } from "../cpu/activation.ts";
import { CpuBackend } from "../cpu/cpu-backend.ts";
import { floats, ints } from "../cpu/host-buffer.ts";
import { hostSlots } from "../cpu/host-views.ts";
import { Slot } from "../cpu/slots.ts";
import type { DeviceBuffer, Tensor } from "../tensor.ts";
import type { Weight } from "../weight.ts";
import { attend, canAttend } from "./attend.ts";
import { type DrawnRow, draw } from "./draw.ts";
import { canMultiply, multiply } from "./multiply.ts";
import { Operands } from "./operands.ts";
import { compileKernels, MAX_PLACE_BYTES, Place, PlacedBuffer } from "./place.ts";
import { ThreadPool } from "./thread-pool.ts";

/** What tensors leave of a place, for the copies and scratch memory of ops that work there. */
const SPARED_BYTES = 2 ** 28;

export interface SimdOptions {
  /** Threads that compute, the caller's included. Default: as many as the machine runs at once. */
  readonly threads?: number;
  /** With the other ranks, where there are any. */
  readonly communicator?: Communicator | undefined;
  /** Bytes of a memory, a multiple of 64 KiB; tensors that do not fit go into another. Default: 4 GiB. */
  readonly placeBytes?: number;
  /** Bytes of each that tensors leave. */
  readonly sparedBytes?: number;
}

/**
 * The CPU backend for use: the reference backend on memory that threads share, and WebAssembly kernels for the ops that take the time.
 * Whatever the kernels do not have, the reference computes, on the same memory.
 */
export class SimdBackend extends CpuBackend {
  override readonly name = "cpu";
  override readonly matrixDtypes = ["bfloat16", "float16"] as const;
  readonly #module = compileKernels();
  readonly #pool: ThreadPool;
  readonly #places: Place[] = [];
  readonly #placeBytes: number;
  readonly #sparedBytes: number;
  #isDisposed = false;

  constructor({ threads = availableParallelism(), communicator, ...sizes }: SimdOptions = {}) {
    super(undefined, communicator);
    this.#placeBytes = sizes.placeBytes ?? MAX_PLACE_BYTES;
    this.#sparedBytes = sizes.sparedBytes ?? SPARED_BYTES;
    this.#pool = new ThreadPool(this.#module, threads);
    this.#addPlace();
  }

  get threads(): number {
    return this.#pool.threads;
  }

  override allocate(byteLength: number): DeviceBuffer {
    invariant(!this.#isDisposed, "CPU backend used after dispose()");
    for (const place of this.#places) {
      const buffer = place.take(byteLength, this.#sparedBytes);
      if (buffer !== undefined) return buffer;
    }
    const buffer =
      byteLength <= this.#placeBytes ? this.#addPlace().take(byteLength, this.#sparedBytes) : undefined;
    if (buffer !== undefined) return buffer;
    throw new DeviceError(
      `cannot allocate ${byteLength} bytes of host memory: a tensor takes ${formatBytes(this.#placeBytes - this.#sparedBytes)} at most`,
    );
  }

  /** Of host and reference alone: no kernel reads or writes it. */
  override allocateShared(byteLength: number): DeviceBuffer {
    return super.allocate(byteLength);
  }

  override dispose(): void {
    this.#isDisposed = true;
    this.#pool.dispose();
    super.dispose();
  }

  override linear(out: Tensor, x: Tensor, weight: Weight, fusion: LinearFusion = {}): void {
    const shape = checks.checkLinear("float32", out, x, weight, fusion, this.matrixDtypes);
    const { activation, ...others } = fusion;
    const place = placeOf(weight.data);
    if (place === undefined || !canMultiply(weight, fusion)) super.linear(out, x, weight, fusion);
    else if (activation?.kind !== "gelu") {
      multiply(this.#pool, new Operands(place), out, x, weight, shape, fusion);
    } else if (activation.gated) {
      const both = this.empty("float32", [shape.m, shape.n]);
      multiply(this.#pool, new Operands(place), both, x, weight, shape, others);
      gatedActivation(floats(out), floats(both), shape.n / 2, activation.kind);
      both.buffer.dispose();
    } else {
      multiply(this.#pool, new Operands(place), out, x, weight, shape, others);
      super.activation(out, out, activation.kind);
    }
  }

  override rmsNorm(out: Tensor, x: Tensor, weight: Tensor, eps: number, addTo?: Tensor): void {
    const { tokens, width } = checks.checkRmsNorm("float32", out, x, weight, addTo);
    const place = placeOf(x);
    if (place === undefined || addTo !== undefined) {
      super.rmsNorm(out, x, weight, eps, addTo);
      return;
    }
    const operands = new Operands(place);
    const result = operands.write("out", out);
    const norm = operands.read("norm", weight);
    this.#pool.run(place, {
      kernel: layout.PREPARE_FLOATS,
      units: tokens,
      work: tokens * width,
      write: (args) => {
        args.words(0, x.address, result.address, 4 * width, width, norm);
        args.float(5, eps);
      },
    });
    result.done();
  }

  override attend(
    out: Tensor,
    qkv: Tensor,
    cache: LayerCache,
    batch: BatchTensors,
    spec: AttentionSpec,
  ): void {
    const shape = checks.checkAttend("float32", out, qkv, cache, batch, spec);
    const place = placeOf(cache.keys);
    if (place === undefined || placeOf(cache.values) !== place || !canAttend(cache, spec))
      super.attend(out, qkv, cache, batch, spec);
    else attend(this.#pool, new Operands(place), out, qkv, cache, batch, spec, shape);
  }

  override sample(
    out: Tensor,
    logits: Tensor,
    processed: Tensor,
    samples: SampleRows,
    slots: SlotTensors,
  ): void {
    const shape = checks.checkSample(out, logits, processed, samples, slots);
    const place = placeOf(logits);
    if (place === undefined || placeOf(processed) !== place) {
      super.sample(out, logits, processed, samples, slots);
      return;
    }
    const [rowSlots, positions, host] = [
      ints(samples.slots),
      ints(samples.positions),
      hostSlots(slots, shape),
    ];
    const rows = Array.from(rowSlots, (index, i): DrawnRow => {
      const slot = new Slot(host, index);
      const from = slot.word("flags") === 0 ? logits : processed;
      return { logits: from.address + 4 * shape.vocab * i, slot, position: positions[i]! };
    });
    draw(this.#pool, place, ints(out), rows, shape.vocab);
  }

  #addPlace(): Place {
    const place = new Place(this.#module, this.#placeBytes, this.#pool.threads);
    this.#places.push(place);
    this.#pool.add(place);
    return place;
  }
}

function placeOf({ buffer }: Tensor): Place | undefined {
  return buffer instanceof PlacedBuffer ? buffer.place : undefined;
}
