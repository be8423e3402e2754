import { availableParallelism } from "node:os";
import * as layout from "../../../kernels-wasm/layout.ts";
import { formatBytes } from "../../base/bytes.ts";
import type { CpuKernels } from "../../base/config.ts";
import { DeviceError, invariant } from "../../base/errors.ts";
import type { AttentionSpec } from "../attention-spec.ts";
import type {
  Backend,
  BatchTensors,
  CapturedGraph,
  LayerCache,
  LinearFusion,
  SampleRows,
  SlotTensors,
} from "../backend.ts";
import * as checks from "../checks.ts";
import type { Communicator } from "../communicator.ts";
import { gatedActivation } from "../cpu/activation.ts";
import type { CpuBackend } from "../cpu/cpu-backend.ts";
import { floats, ints } from "../cpu/host-buffer.ts";
import { hostSamples, hostSlots } from "../cpu/host-views.ts";
import { processRows } from "../cpu/process-logits.ts";
import { checkExperts } from "../expert-checks.ts";
import type { DeviceBuffer, Tensor } from "../tensor.ts";
import type { Weight } from "../weight.ts";
import { attend, canAttend } from "./attend.ts";
import { CapturedStep } from "./captured-step.ts";
import { Contexts } from "./contexts.ts";
import { draw } from "./draw.ts";
import { canComputeExperts, type ExpertTools, experts } from "./experts.ts";
import { HostOps } from "./host-ops.ts";
import {
  canFuse,
  canMultiply,
  isKernelActivation,
  isOfKernels,
  type MultiplyFusion,
  multiply,
  type ProductShape,
} from "./multiply.ts";
import { Operands } from "./operands.ts";
import { compileKernels, MAX_PLACE_BYTES, Place, PlacedBuffer, roomOf } from "./place.ts";
import { type Multiplied, ProductPlans } from "./product-plan.ts";
import { ALONE, ThreadPool } from "./thread-pool.ts";
import { type FoundKernels, MachineCode } from "./x64/machine-code.ts";

/** What tensors leave of a place, for the copies and scratch memory of ops that work there. */
const SPARED_BYTES = 2 ** 28;
/** Copies that there is room for in it, of the most bytes of one: an op has several, and outgrown ones leave gaps. */
const COPIES = 16;

export interface SimdOptions {
  /** Threads that compute, the caller's included. Default: as many as the machine runs at once. */
  readonly threads?: number;
  /** With the other ranks, where there are any. */
  readonly communicator?: Communicator | undefined;
  /** Of products. Default auto: the fastest that the machine has. */
  readonly kernels?: CpuKernels;
  /** Bytes of a memory, a multiple of 64 KiB; tensors that do not fit go into another. Default: `MAX_PLACE_BYTES`. */
  readonly placeBytes?: number;
  /** Bytes of each that tensors leave. */
  readonly sparedBytes?: number;
}

/**
 * The CPU backend for use: the reference backend on memory that threads share, and WebAssembly kernels for the ops that take the time.
 * Whatever the kernels do not have, the reference computes, on the same memory.
 */
export class SimdBackend extends HostOps {
  override readonly name = "cpu";
  override readonly matrixDtypes = ["bfloat16", "float16"] as const;
  /** Ranks run each op when it comes: they wait for each other. */
  readonly capture?: NonNullable<Backend["capture"]>;
  readonly capturesEverySize = true;
  readonly #module = compileKernels();
  readonly #code: MachineCode | undefined;
  readonly #pool: ThreadPool;
  readonly #plans: ProductPlans;
  readonly #places: Place[] = [];
  readonly #placeBytes: number;
  readonly #sparedBytes: number;
  #isDisposed = false;

  constructor({
    threads = availableParallelism(),
    communicator,
    kernels = "auto",
    ...sizes
  }: SimdOptions = {}) {
    super(undefined, communicator);
    this.#placeBytes = sizes.placeBytes ?? MAX_PLACE_BYTES;
    this.#sparedBytes = sizes.sparedBytes ?? SPARED_BYTES;
    this.#code = MachineCode.open(kernels);
    this.#pool = new ThreadPool(this.#module, threads, this.#code);
    this.#plans = new ProductPlans(this.#code?.products);
    this.#addPlace();
    if (communicator === undefined) this.capture = (enqueue) => this.#capture(enqueue);
  }

  /** Those of products. */
  get kernels(): FoundKernels {
    return this.#code?.products.isa.name ?? "wasm";
  }

  get threads(): number {
    return this.#pool.threads;
  }

  override allocate(byteLength: number, isPool = false): DeviceBuffer {
    invariant(!this.#isDisposed, "CPU backend used after dispose()");
    const spared = this.#sparedBytes;
    const take = (place: Place) =>
      isPool ? place.takePool(byteLength, spared) : place.take(byteLength, spared);
    for (const place of this.#places) {
      const buffer = take(place);
      if (buffer !== undefined) return buffer;
    }
    const most = roomOf(this.#placeBytes, this.threads) - spared;
    if (byteLength > most)
      throw new DeviceError(
        `cannot allocate ${byteLength} bytes of host memory: a tensor takes ${formatBytes(most)} at most`,
      );
    const buffer = take(this.#addPlace());
    if (buffer === undefined) throw new DeviceError(`cannot allocate ${byteLength} bytes of host memory`);
    return buffer;
  }

  /** Of host and reference alone: no kernel reads or writes it. */
  override allocateShared(byteLength: number): DeviceBuffer {
    return super.allocate(byteLength);
  }

  /** Starts the other threads, which takes some 20 ms, where a task of so many multiplications is worth them: ahead of it. */
  startThreads(work: number): void {
    if (work > ALONE) this.#pool.start();
  }

  override dispose(): void {
    this.#isDisposed = true;
    this.#pool.dispose();
    // A thread whose task was given up may still be executing it.
    if (!this.#pool.hasFailed) {
      this.#code?.dispose();
      for (const place of this.#places) place.dispose();
    }
    super.dispose();
  }

  #capture(enqueue: () => void): CapturedGraph {
    const moves = this.#scratchMoves();
    const step = new CapturedStep(this.#pool, () => this.#scratchMoves() !== moves);
    this.capturing = step;
    try {
      enqueue();
    } finally {
      this.capturing = undefined;
    }
    return step;
  }

  /** How often scratch memory that tasks may name has moved. */
  #scratchMoves(): number {
    return this.#places.reduce((sum, { scratchMoves }) => sum + scratchMoves, 0);
  }

  /** Has kernels compute in a place: now, or whenever the step that is being captured is launched. */
  #compute(place: Place, op: (operands: Operands) => void): void {
    if (this.capturing === undefined) {
      op(this.#operandsIn(place));
      return;
    }
    const operands = this.#operandsIn(place, true);
    const tasks = this.#pool.record(() => op(operands));
    // Copies are made anew for each launch.
    if (operands.haveCopies) this.perform(() => op(this.#operandsIn(place)));
    else this.capturing.addTasks(tasks);
  }

  override experts(...call: Parameters<CpuBackend["experts"]>): void {
    // Which experts the tokens have, and so what is multiplied, comes out when it is computed.
    this.perform(() => this.#experts(...call));
  }

  #experts(...call: Parameters<CpuBackend["experts"]>): void {
    const [out, x, logits, weights, spec, fusion = {}] = call;
    const shape = checkExperts("float32", out, x, logits, weights, spec, fusion, this.matrixDtypes);
    const { activation } = spec;
    if (!canComputeExperts(weights, fusion) || !isKernelActivation(activation)) {
      super.experts(...call);
      return;
    }
    const tools: ExpertTools = {
      empty: (extents) => this.empty("float32", extents),
      multiply: (result, input, weight, around) => {
        const [n, k] = weight.shape;
        const operands = this.#operandsIn(this.#placeFor(weight));
        // An expert's weight is a part of all experts', made for this product.
        const plan = this.#plans.make(weight, operands, around.norm !== undefined);
        multiply(this.#pool, operands, result, input, plan, { m: input.dim(0), n, k }, around);
      },
      rmsNorm: (result, input, weight, eps) => this.rmsNorm(result, input, weight, eps),
    };
    experts(tools, out, x, logits, weights, { ...spec, activation }, fusion, shape);
  }

  override linear(out: Tensor, x: Tensor, weight: Weight, fusion: LinearFusion = {}): void {
    const shape = checks.checkLinear("float32", out, x, weight, fusion, this.matrixDtypes);
    if (!canMultiply(weight) || !canFuse(fusion)) super.linear(out, x, weight, fusion);
    else if (isOfKernels(fusion))
      this.#compute(this.#placeFor(weight), (operands) =>
        this.#multiply(operands, out, x, weight, shape, fusion),
      );
    else this.perform(() => this.#multiplyThenActivate(out, x, weight, shape, fusion));
  }

  #multiply(
    operands: Operands,
    out: Tensor,
    x: Tensor,
    weight: Multiplied,
    shape: ProductShape,
    fusion: MultiplyFusion,
  ): void {
    const plan = this.#plans.find(weight, operands, fusion.norm !== undefined);
    multiply(this.#pool, operands, out, x, plan, shape, fusion);
  }

  /** A product with an activation that the kernels do not have. */
  #multiplyThenActivate(
    out: Tensor,
    x: Tensor,
    weight: Multiplied,
    shape: ProductShape,
    { activation, ...others }: LinearFusion,
  ): void {
    const { kind, gated } = activation!;
    const both = gated ? this.empty("float32", [shape.m, shape.n]) : out;
    this.#multiply(this.#operandsIn(this.#placeFor(weight)), both, x, weight, shape, others);
    if (!gated) {
      super.activation(out, out, kind);
      return;
    }
    gatedActivation(floats(out), floats(both), shape.n / 2, kind);
    both.buffer.dispose();
  }

  /** A weight's place. One that has none is copied, as other operands that lie elsewhere. */
  #placeFor({ data }: Multiplied): Place {
    return placeOf(data) ?? this.#places[0]!;
  }

  #operandsIn(place: Place, areCaptured = false): Operands {
    return new Operands(place, this.#sparedBytes / COPIES, areCaptured);
  }

  override rmsNorm(
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    eps: number,
    addTo?: Tensor,
    scale?: Tensor,
  ): void {
    const shape = checks.checkRmsNorm("float32", out, x, weight, addTo, scale);
    // A weight: captured steps have it as it was.
    const factor = scale && floats(scale)[0];
    if (addTo !== undefined && shape.width > layout.MAX_INPUTS)
      super.rmsNorm(out, x, weight, eps, addTo, scale);
    else this.#norm(layout.RMS_NORM, out, x, weight, eps, shape, { addTo, factor });
  }

  override layerNorm(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | undefined, eps: number): void {
    const shape = checks.checkLayerNorm("float32", out, x, weight, bias);
    this.#norm(layout.LAYER_NORM, out, x, weight, eps, shape, { bias });
  }

  #norm(
    kernel: number,
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    eps: number,
    { tokens, width }: { readonly tokens: number; readonly width: number },
    {
      addTo,
      factor = 1,
      bias,
    }: {
      readonly addTo?: Tensor | undefined;
      readonly factor?: number | undefined;
      readonly bias?: Tensor | undefined;
    },
  ): void {
    this.#compute(placeOf(x) ?? this.#places[0]!, (operands) => {
      const factors = operands.read("weight", weight);
      const offsets = operands.optional("bias", bias);
      const atATime = operands.rowsAtATime(x, out, addTo);
      for (let first = 0; first < tokens; first += atATime) {
        const end = Math.min(first + atATime, tokens);
        const result = operands.write("out", out.rows(first, end));
        const input = operands.read("x", x.rows(first, end));
        const addend = operands.optional("addTo", addTo?.rows(first, end));
        this.#pool.run(operands.place, {
          kernel,
          units: end - first,
          work: (end - first) * width,
          write: (args) => {
            args.words(0, input, result.address, 0, width, factors);
            args.float(5, eps);
            args.words(6, addend, offsets);
            args.float(8, factor);
          },
        });
        result.done();
      }
    });
  }

  override capLogits(logits: Tensor, cap: number): void {
    checks.checkCapLogits(logits, cap);
    const place = placeOf(logits);
    if (place === undefined) {
      super.capLogits(logits, cap);
      return;
    }
    this.#compute(place, () =>
      this.#pool.run(place, {
        kernel: layout.CAP_LOGITS,
        units: Math.ceil(logits.size / layout.CAP_PART),
        work: 8 * logits.size,
        write: (args) => {
          args.words(0, logits.address, logits.size);
          args.float(2, cap);
        },
      }),
    );
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
    if (place === undefined || placeOf(cache.values) !== place || !canAttend(cache, spec)) {
      super.attend(out, qkv, cache, batch, spec);
      return;
    }
    const areDecodes = batch.decodeRows === shape.tokens && placeOf(batch.blockTables) === place;
    // How prompts are cut comes out when the batch is there. Layers share runs only where the tables lie: in one place.
    if (this.capturing !== undefined && !areDecodes)
      this.perform(() => this.attend(out, qkv, cache, batch, spec));
    else
      this.#compute(place, (operands) => {
        const make = () => new Contexts(operands, batch, spec, shape);
        // Those of an op that is called at each launch are of that launch, as its copies are.
        const known = this.capturing?.contextsOf((contexts) => contexts.areOf(batch, spec, shape), make);
        const contexts = known?.contexts ?? make();
        if (known === undefined) contexts.check();
        attend(this.#pool, operands, out, qkv, cache, spec, shape, contexts, known?.runs);
      });
  }

  override processLogits(out: Tensor, logits: Tensor, samples: SampleRows, slots: SlotTensors): void {
    const shape = checks.checkProcessLogits(out, logits, samples, slots);
    const views = [floats(out), floats(logits), hostSamples(samples), hostSlots(slots, shape)] as const;
    this.perform(() => processRows(...views));
  }

  override sample(
    out: Tensor,
    logits: Tensor,
    processed: Tensor,
    samples: SampleRows,
    slots: SlotTensors,
  ): void {
    const shape = checks.checkSample(out, logits, processed, samples, slots);
    const [place, other] = [placeOf(logits), placeOf(processed)];
    if (place === undefined || other === undefined) {
      super.sample(out, logits, processed, samples, slots);
      return;
    }
    const rows = {
      ...{ tokens: ints(out), samples: hostSamples(samples), slots: hostSlots(slots, shape) },
      logits: { place, address: logits.address },
      processed: { place: other, address: processed.address },
    };
    this.perform(() => draw(this.#pool, rows));
  }

  #addPlace(): Place {
    const place = new Place(this.#module, this.#placeBytes, this.#pool.threads, this.#code?.address);
    this.#places.push(place);
    this.#pool.add(place);
    return place;
  }
}

function placeOf({ buffer }: Tensor): Place | undefined {
  return buffer instanceof PlacedBuffer ? buffer.place : undefined;
}
