import { cacheFolder } from "../../base/cache-folder.ts";
import type { DType, FloatDType } from "../../base/dtype.ts";
import { ConfigError, InvariantError, invariant } from "../../base/errors.ts";
import { Context } from "../../cuda/context.ts";
import { CublasLt } from "../../cuda/cublaslt.ts";
import { Graph } from "../../cuda/graph.ts";
import { DeviceMemory } from "../../cuda/memory.ts";
import type { Cuda } from "../../cuda/open-cuda.ts";
import { Event, Stream } from "../../cuda/stream.ts";
import { encodeTensorMap } from "../../cuda/tensor-map.ts";
import type { AttentionSpec, ProjectionNormSpec } from "../attention-spec.ts";
import type {
  Activation,
  Backend,
  BatchTensors,
  BulkUpload,
  CapturedGraph,
  Fence,
  LayerCache,
  LinearFusion,
  LogprobTensors,
  ModelShape,
  Readback,
  SampleRows,
  SlotTensors,
  StepAreas,
  StepBatch,
} from "../backend.ts";
import { checkCopy, checkDrawTokens } from "../checks.ts";
import { byteLengthOf, type DeviceBuffer, Tensor } from "../tensor.ts";
import type { Weight } from "../weight.ts";
import { ColdTimer } from "./cold-timer.ts";
import type { CudaBackendOptions } from "./cuda-backend-options.ts";
import { CudaCommunicator } from "./cuda-communicator.ts";
import { CudaBuffer, SharedBuffer } from "./device-buffer.ts";
import { Gemm } from "./gemm.ts";
import { GEMM_CANDIDATES, GemmTuner } from "./gemm-tuner.ts";
import { KernelLibrary } from "./kernel-library.ts";
import { KernelOps } from "./kernel-ops.ts";
import { DrawTokens } from "./ops/draw-tokens.ts";
import { LinearOps } from "./ops/linear.ts";
import { LinearWays } from "./ops/linear-ways.ts";
import { PendingLayers } from "./ops/pending-layers.ts";
import { Staging } from "./staging.ts";
import { TuningCache } from "./tuning-cache.ts";

/** Scratch memory of cuBLASLt: NVIDIA's advice for Hopper. */
const GEMM_WORKSPACE_BYTES = 32 * 2 ** 20;
/** Major compute capability from which kernels may overlap with the one ahead of them. */
const DEPENDENT_LAUNCH_CAPABILITY = 9;
/** Major compute capability of the only GPUs with wgmma. */
const HOPPER_CAPABILITY = 9;

/** The ops on an NVIDIA GPU: Octavo's own kernels, and cuBLASLt for matrix products, on one stream. */
export class CudaBackend implements Backend {
  readonly name = "cuda";
  readonly #context: Context;
  readonly #stream: Stream;
  readonly #staging: Staging;
  readonly #library: KernelLibrary;
  readonly #gemm: Gemm;
  readonly #tuner: GemmTuner;
  readonly #ops: KernelOps;
  readonly #linear: LinearOps;
  /** Undefined where decode steps are launched op by op: before Hopper, or as a row must not depend on the others. */
  readonly #pending: PendingLayers | undefined;
  readonly #draw: DrawTokens;
  /** With the other ranks, where there are any; with it is what only they have. */
  readonly communicator: CudaCommunicator | undefined;
  readonly allReduceAdd?: NonNullable<Backend["allReduceAdd"]>;
  /** out float32 [N, ranks · V] = every rank's part [N, V], beside each other. */
  readonly gatherColumns?: (out: Tensor, part: Tensor) => void;
  /** From the first capture on, graphs may hold the addresses of ops' own memory. */
  #hasCaptured = false;

  /**
   * @param cuda the opened driver and libraries
   * @param activationDtype bfloat16 or float16
   * @throws ConfigError for float32; DeviceError when the GPU fails or lacks memory, with nothing left allocated.
   */
  constructor(
    cuda: Cuda,
    readonly activationDtype: FloatDType,
    private readonly options: CudaBackendOptions = {},
  ) {
    if (activationDtype === "float32")
      throw new ConfigError("dtype", 'device "cuda" computes in bfloat16 or float16, not float32');
    const { device } = cuda;
    const { batchInvariant = false, quantiseActivations = false, ranks } = options;
    this.#context = Context.retain(cuda.driver.api, device);
    try {
      this.#stream = Stream.create(this.#context);
      const wait = ranks && ((event: Event) => this.communicator!.wait(event));
      this.#staging = new Staging(this.#context, this.#stream, wait);
      this.#library = KernelLibrary.create(this.#context, cuda.nvrtc, { nvrtcFiles: cuda.nvrtcFiles });
      const cublas = CublasLt.create(cuda.cublasLt, this.#context);
      const workspace = DeviceMemory.allocate(this.#context, GEMM_WORKSPACE_BYTES);
      const [context, stream] = [this.#context, this.#stream];
      const timer = new ColdTimer(context, stream);
      const cache = new TuningCache(cacheFolder("kernels"), [
        ...[device.name, cuda.driver.version.join("."), cublas.api.cublasLtGetVersion()],
        ...[GEMM_CANDIDATES, workspace.byteLength, this.#library.digest("linear_wgmma.cu")],
      ]);
      this.#tuner = new GemmTuner({ context, stream, cublas, workspace, timer, cache });
      const allocate = (byteLength: number) => this.#allocateForOps(byteLength);
      this.#gemm = new Gemm(cublas, workspace, stream, this.#tuner, { batchInvariant, allocate });
      this.#ops = new KernelOps(this.#library, {
        dtype: activationDtype,
        ...{ batchInvariant, quantiseActivations },
        smCount: device.multiprocessors,
        sharedBytesPerBlock: device.sharedMemoryPerBlock,
        sharedBytesPerSm: device.sharedMemoryPerMultiprocessor,
        dependentLaunch: device.computeCapability[0] >= DEPENDENT_LAUNCH_CAPABILITY,
        hopper: device.computeCapability[0] === HOPPER_CAPABILITY,
        wholeLayers: !batchInvariant && ranks === undefined,
        ranks: ranks && {
          size: ranks.exchange.shard.size,
          gatherColumns: (out, part) => this.gatherColumns!(out, part),
        },
        upload: (address, bytes) => this.#staging.upload(address, bytes),
        encodeTensorMap: (shape) => encodeTensorMap(cuda.driver.api, shape),
        allocate,
        allocateZeroed: (byteLength) => this.#zeroed(this.#allocateForOps(byteLength)),
        copy: (target, source, byteLength) => this.#stream.copy(target, source, byteLength),
        clear: (memory) => void this.#zeroed(memory),
      });
      const { wgmmaLinear: wgmma, quantised, norm, activation } = this.#ops;
      const ways =
        wgmma &&
        new LinearWays(wgmma, {
          ...{ dtype: activationDtype, smCount: device.multiprocessors, batchInvariant, timer, cache },
          allocateZeroed: (byteLength) => this.#zeroed(this.allocate(byteLength)),
        });
      this.#linear = new LinearOps(activationDtype, {
        small: batchInvariant ? undefined : this.#ops.smallLinear,
        large: batchInvariant ? undefined : this.#ops.largeLinear,
        hopper: wgmma && ways && { wgmma, ways },
        ...{ quantised, gemm: this.#gemm, norm, activation },
        allocate,
      });
      this.#pending = this.#pendingLayers();
      const { drawSmall, drawWgmma, sampling, capLogits } = this.#ops;
      this.#draw = new DrawTokens({
        // Steps in which some row needs its logits multiply by `linear`, which rounds otherwise.
        ...{ small: batchInvariant ? undefined : drawSmall, wgmma: batchInvariant ? undefined : drawWgmma },
        ...{ sampling, capLogits, allocate },
        linear: (out, x, weight, fusion) => this.#linear.linear(this.#stream.value, out, x, weight, fusion),
        gatherColumns: (out, part) => this.gatherColumns!(out, part),
      });
      this.communicator = ranks && this.#communicator(ranks, device.computeCapability[0]);
      if (this.communicator !== undefined) {
        this.allReduceAdd = this.communicator.allReduceAdd.bind(this.communicator);
        this.gatherColumns = this.communicator.gatherColumns.bind(this.communicator);
      }
    } catch (error) {
      try {
        this.#context.dispose();
      } catch {
        // What failed first is what is reported.
      }
      throw error;
    }
  }

  #communicator(ranks: NonNullable<CudaBackendOptions["ranks"]>, capability: number): CudaCommunicator {
    return new CudaCommunicator({
      ...{ ...ranks, context: this.#context, library: this.#library, dtype: this.activationDtype },
      batchInvariant: this.options.batchInvariant === true,
      stream: () => this.#ordered,
      dependentLaunch: capability >= DEPENDENT_LAUNCH_CAPABILITY,
      allocateZeroed: (byteLength) => this.#zeroed(this.allocate(byteLength)),
    });
  }

  #pendingLayers(): PendingLayers | undefined {
    const [{ decodeLayers, attend }, linear, stream] = [this.#ops, this.#linear, this.#stream.value];
    if (decodeLayers === undefined) return undefined;
    return new PendingLayers(decodeLayers, {
      linear: ({ out, x, weight, fusion }) => linear.linear(stream, out, x, weight, fusion),
      attend: ({ out, qkv, cache, batch, spec }) => attend.attend(stream, out, qkv, cache, batch, spec),
    });
  }

  /** The stream, for what comes after all ops so far. */
  get #ordered(): Stream {
    this.#flush();
    return this.#stream;
  }

  /** Launches the ops that are held back. */
  #flush(): void {
    this.#pending?.flush(this.#stream.value);
  }

  /** Compiles, in parallel, what the disk cache lacks, and loads all. */
  async prepare(shape: ModelShape): Promise<void> {
    const own = [...this.#linear.units(shape), ...this.#ops.units(shape)];
    await this.#library.prepare([...own, ...(this.communicator?.units() ?? [])]);
    // What it holds of the GPU's memory must not be missing when the KV pool is planned.
    await this.options.opening?.finish();
  }

  /** See `CudaCommunicator.meet`. */
  meetRanks(): void {
    try {
      this.communicator?.meet();
    } catch (error) {
      this.communicator?.abort();
      throw error;
    }
  }

  leaveRanks(): void {
    if (!this.#context.isDisposed) this.communicator?.leave();
  }

  rehearse(run: () => void): void {
    if (this.communicator === undefined) run();
    else this.communicator.rehearse(run);
  }

  allocate(byteLength: number): DeviceBuffer {
    invariant(!this.#context.isDisposed, "CUDA backend used after dispose()");
    return new CudaBuffer(this.#context, byteLength, () => this.#flush());
  }

  allocateShared(byteLength: number): DeviceBuffer {
    invariant(!this.#context.isDisposed, "CUDA backend used after dispose()");
    return new SharedBuffer(this.#context, byteLength);
  }

  empty(dtype: DType, shape: readonly number[]): Tensor {
    return new Tensor(this.allocate(byteLengthOf(dtype, shape)), dtype, shape);
  }

  upload(target: Tensor, data: ArrayBufferView): void {
    if (data.byteLength !== target.byteLength)
      throw new InvariantError(`upload of ${data.byteLength} bytes to ${target}`);
    this.#flush();
    this.#staging.upload(target.address, data);
  }

  bulkUpload(): BulkUpload {
    this.#flush();
    return this.#staging.bulkUpload();
  }

  download(source: Tensor): Uint8Array {
    return this.readback(source).wait();
  }

  readback(source: Tensor): Readback {
    this.#flush();
    return this.#staging.readback(source.address, source.byteLength);
  }

  copy(target: Tensor, source: Tensor): void {
    checkCopy(target, source);
    this.#ordered.copy(target.address, source.address, target.byteLength);
  }

  fill(target: Tensor, byte: number): void {
    this.#ordered.fill(target.address, byte, target.byteLength);
  }

  fence(): Fence {
    this.#flush();
    return this.#staging.fence();
  }

  synchronize(): void {
    if (this.communicator === undefined) this.#ordered.synchronize();
    else this.fence().wait();
  }

  /** Marks this point of the work enqueued, with a timestamp: for benchmarks, outside `capture`. The caller disposes. */
  mark(): Event {
    const event = Event.create(this.#context, { timing: true });
    event.record(this.#ordered);
    return event;
  }

  memory(): { readonly free: number; readonly total: number } {
    return this.#context.memory();
  }

  capture(enqueue: () => void): CapturedGraph {
    this.#hasCaptured = true;
    const record = () => this.#record(enqueue);
    const instantiate = (graph: Graph) => this.#instantiate(graph);
    if (this.communicator !== undefined) return this.communicator.capture(record, instantiate);
    using graph = record();
    return instantiate(graph);
  }

  #record(enqueue: () => void): Graph {
    return Graph.capture(this.#ordered, () => {
      try {
        enqueue();
        this.#flush();
      } finally {
        this.#pending?.discard();
      }
    });
  }

  #instantiate(graph: Graph): CapturedGraph {
    const replay = graph.instantiate();
    try {
      replay.upload(this.#ordered);
    } catch (error) {
      replay.dispose();
      throw error;
    }
    return { launch: () => replay.launch(this.#ordered), dispose: () => replay.dispose() };
  }

  /** Finds the fastest matrix products of the weights used so far at these token counts; see `GemmTuner`. */
  tuneLinear(tokenCounts: readonly number[]): void {
    this.#flush();
    if (!this.options.batchInvariant) this.#linear.foresee();
    this.#tuner.tune(tokenCounts);
    this.#gemm.replan();
    this.#linear.tune(this.#stream.value, tokenCounts);
  }

  dispose(): void {
    this.leaveRanks();
    this.#context.dispose();
  }

  #zeroed(buffer: DeviceBuffer): DeviceBuffer {
    this.#stream.fill(buffer.address, 0, buffer.byteLength);
    return buffer;
  }

  /** Memory of ops, which they may dispose of when it is outgrown: it is kept if a graph may hold it. */
  #allocateForOps(byteLength: number): DeviceBuffer {
    const buffer = this.allocate(byteLength);
    const { address } = buffer;
    const dispose = () => {
      if (!this.#hasCaptured) buffer.dispose();
    };
    return { byteLength, address, dispose };
  }

  rotaryTable(out: Tensor, frequencies: Tensor, amplitude: number): void {
    this.#ops.rotaryTable.rotaryTable(this.#ordered.value, out, frequencies, amplitude);
  }

  embedding(out: Tensor, table: Tensor, ids: Tensor, firstId?: number, scale?: number): void {
    this.#ops.embedding.embedding(this.#ordered.value, out, table, ids, firstId, scale);
  }

  gatherRows(out: Tensor, x: Tensor, rows: Tensor): void {
    this.#ops.embedding.gatherRows(this.#ordered.value, out, x, rows);
  }

  linear(out: Tensor, x: Tensor, weight: Weight, fusion: LinearFusion = {}): void {
    if (weight.format !== "dense") this.#flush();
    else if (this.#pending?.add(this.#stream.value, { kind: "linear", out, x, weight, fusion })) return;
    this.#linear.linear(this.#stream.value, out, x, weight, fusion);
  }

  prepareWeight(weight: Weight): Weight {
    return this.#ops.quantised.prepare(this.#ordered.value, weight);
  }

  experts(...[out, x, logits, weights, spec, fusion = {}]: Parameters<Backend["experts"]>): void {
    this.#ops.experts.experts(this.#ordered.value, out, x, logits, weights, spec, fusion);
  }

  deltaNet(...args: Parameters<Backend["deltaNet"]>): void {
    this.#ops.deltaNet.deltaNet(this.#ordered.value, ...args);
  }

  gateElements(x: Tensor, gate: Tensor): void {
    this.#ops.deltaNet.gateElements(this.#ordered.value, x, gate);
  }

  gateRows(...args: Parameters<Backend["gateRows"]>): void {
    this.#ops.experts.gateRows(this.#ordered.value, ...args);
  }

  rmsNorm(...call: Parameters<Backend["rmsNorm"]>): void {
    this.#ops.norm.rmsNorm(this.#ordered.value, ...call);
  }

  layerNorm(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | undefined, eps: number): void {
    this.#ops.norm.layerNorm(this.#ordered.value, out, x, weight, bias, eps);
  }

  activation(out: Tensor, x: Tensor, activation: Activation): void {
    this.#ops.activation.activation(this.#ordered.value, out, x, activation);
  }

  multiplyColumns(x: Tensor, factors: Tensor, start: number): void {
    this.#ops.activation.multiplyColumns(this.#ordered.value, x, factors, start);
  }

  normProjections(qkv: Tensor, norm: ProjectionNormSpec): void {
    this.#ops.norm.normProjections(this.#ordered.value, qkv, norm);
  }

  attend(out: Tensor, qkv: Tensor, cache: LayerCache, batch: BatchTensors, spec: AttentionSpec): void {
    if (this.#pending?.add(this.#stream.value, { kind: "attend", out, qkv, cache, batch, spec })) return;
    this.#ops.attend.attend(this.#stream.value, out, qkv, cache, batch, spec);
  }

  joinSlots(slots: SlotTensors, joins: Tensor): void {
    this.#ops.batch.joinSlots(this.#ordered.value, slots, joins);
  }

  prepareBatch(batch: StepBatch, samples: SampleRows, inbox: StepAreas, slots: SlotTensors): void {
    this.#ops.batch.prepareBatch(this.#ordered.value, batch, samples, inbox, slots);
  }

  post(outbox: StepAreas, results: Tensor): void {
    this.#ops.batch.post(this.#ordered.value, outbox, results);
  }

  scatter(target: Tensor, indices: Tensor, values: Tensor): void {
    this.#ops.batch.scatter(this.#ordered.value, target, indices, values);
  }

  capLogits(logits: Tensor, cap: number): void {
    this.#ops.capLogits.capLogits(this.#ordered.value, logits, cap);
  }

  processLogits(out: Tensor, logits: Tensor, samples: SampleRows, slots: SlotTensors): void {
    this.#ops.processLogits.processLogits(this.#ordered.value, out, logits, samples, slots);
  }

  sample(out: Tensor, logits: Tensor, processed: Tensor, samples: SampleRows, slots: SlotTensors): void {
    this.#ops.sampling.sample(this.#ordered.value, out, logits, processed, samples, slots);
  }

  drawTokens(...call: Parameters<Backend["drawTokens"]>): void {
    const ranks = call[2].firstToken === undefined ? 1 : (this.communicator?.shard.size ?? 1);
    const { rows } = checkDrawTokens(this.activationDtype, ...call, ranks);
    if (rows > 0) this.#draw.launch(this.#ordered.value, ...call);
  }

  logprobs(out: LogprobTensors, logits: Tensor, tokens: Tensor, rows?: Tensor): void {
    this.#ops.logprobs.logprobs(this.#ordered.value, out, logits, tokens, rows);
  }
}
