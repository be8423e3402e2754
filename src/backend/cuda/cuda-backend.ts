import type { DType, FloatDType } from "../../base/dtype.ts";
import { ConfigError, invariant } from "../../base/errors.ts";
import { Context } from "../../cuda/context.ts";
import { CublasLt } from "../../cuda/cublaslt.ts";
import { Graph } from "../../cuda/graph.ts";
import { DeviceMemory } from "../../cuda/memory.ts";
import type { Cuda } from "../../cuda/open.ts";
import { Stream } from "../../cuda/stream.ts";
import type {
  Activation,
  AttentionSpec,
  Backend,
  BatchTensors,
  CapturedGraph,
  LayerCache,
  LogprobTensors,
  Readback,
  RopeStoreSpec,
  SampleRows,
  SlotTensors,
} from "../backend.ts";
import { checkLinear } from "../checks.ts";
import { type DeviceBuffer, Tensor } from "../tensor.ts";
import { cubinCacheFolder } from "./cubin-cache.ts";
import { CudaBuffer } from "./device-buffer.ts";
import { Gemm } from "./gemm.ts";
import { GemmTuner } from "./gemm-tuner.ts";
import { KernelLibrary } from "./kernel-library.ts";
import { ActivationOps } from "./ops/activation.ts";
import { AttentionOps } from "./ops/attention.ts";
import { BatchOps } from "./ops/batch.ts";
import { EmbeddingOps } from "./ops/embedding.ts";
import { LogprobOps } from "./ops/logprobs.ts";
import { NormOps } from "./ops/norm.ts";
import { RotaryOps } from "./ops/rotary.ts";
import { SamplingOps } from "./ops/sampling.ts";
import { Staging } from "./staging.ts";

/** What cuBLASLt may use besides its operands: NVIDIA's advice for Hopper. */
const GEMM_WORKSPACE_BYTES = 32 * 2 ** 20;

/** The ops on an NVIDIA GPU: Octavo's own kernels, and cuBLASLt for matrix products, on one stream. */
export class CudaBackend implements Backend {
  readonly name = "cuda";
  readonly #context: Context;
  readonly #stream: Stream;
  readonly #staging: Staging;
  readonly #library: KernelLibrary;
  readonly #gemm: Gemm;
  readonly #tuner: GemmTuner;
  readonly #embedding: EmbeddingOps;
  readonly #norm: NormOps;
  readonly #activation: ActivationOps;
  readonly #rotary: RotaryOps;
  readonly #attention: AttentionOps;
  readonly #batch: BatchOps;
  readonly #sampling: SamplingOps;
  readonly #logprobs: LogprobOps;

  /**
   * @param cuda the opened driver and libraries
   * @param activationDtype bfloat16 or float16
   * @throws ConfigError for float32.
   */
  constructor(
    cuda: Cuda,
    readonly activationDtype: FloatDType,
  ) {
    if (activationDtype === "float32")
      throw new ConfigError("dtype", 'device "cuda" computes in bfloat16 or float16, not float32');
    const { device } = cuda;
    this.#context = Context.retain(cuda.driver.api, device);
    this.#stream = Stream.create(this.#context);
    this.#staging = new Staging(this.#context, this.#stream);
    this.#library = KernelLibrary.create(this.#context, cuda.nvrtc, { nvrtcFiles: cuda.nvrtcFiles });
    const cublas = CublasLt.create(cuda.cublasLt, this.#context);
    const workspace = DeviceMemory.allocate(this.#context, GEMM_WORKSPACE_BYTES);
    this.#tuner = new GemmTuner(
      ...([this.#context, this.#stream, cublas, workspace, cubinCacheFolder(), cuda.driver.version] as const),
    );
    this.#gemm = new Gemm(cublas, workspace, this.#stream, this.#tuner);

    const library = this.#library;
    const allocate = (byteLength: number) => this.allocate(byteLength);
    const allocateZeroed = (byteLength: number) => {
      const buffer = this.allocate(byteLength);
      this.#stream.fill(buffer.address, 0, byteLength);
      return buffer;
    };
    const options = { dependentLaunch: process.env.OCTAVO_PDL === "1" };
    this.#embedding = new EmbeddingOps(library, activationDtype, options);
    this.#norm = new NormOps(library, activationDtype, options);
    this.#activation = new ActivationOps(library, activationDtype, options);
    this.#rotary = new RotaryOps(library, activationDtype, options);
    this.#attention = new AttentionOps(library, {
      smCount: device.multiprocessors,
      dtype: activationDtype,
      allocateZeroed,
      ...options,
    });
    this.#batch = new BatchOps(library, options);
    this.#sampling = new SamplingOps(library, allocate, options);
    this.#logprobs = new LogprobOps(library, allocate, options);
  }

  allocate(byteLength: number): DeviceBuffer {
    return new CudaBuffer(this.#context, byteLength);
  }

  empty(dtype: DType, shape: readonly number[]): Tensor {
    const bytes = new Tensor(UNBOUNDED, dtype, shape).byteLength;
    return new Tensor(this.allocate(bytes), dtype, shape);
  }

  upload(target: Tensor, data: ArrayBufferView): void {
    invariant(data.byteLength === target.byteLength, `upload of ${data.byteLength} bytes to ${target}`);
    this.#staging.upload(target.address, data);
  }

  download(source: Tensor): Uint8Array {
    return this.readback(source).wait();
  }

  readback(source: Tensor): Readback {
    return this.#staging.readback(source.address, source.byteLength);
  }

  fill(target: Tensor, byte: number): void {
    this.#stream.fill(target.address, byte, target.byteLength);
  }

  synchronize(): void {
    this.#stream.synchronize();
  }

  memory(): { readonly free: number; readonly total: number } {
    return this.#context.memory();
  }

  capture(enqueue: () => void): CapturedGraph {
    using graph = Graph.capture(this.#stream, enqueue);
    const replay = graph.instantiate();
    replay.upload(this.#stream);
    return { launch: () => replay.launch(this.#stream), dispose: () => replay.dispose() };
  }

  /** Finds the fastest matrix products of the weights used so far at these token counts; see `GemmTuner`. */
  tuneLinear(tokenCounts: readonly number[]): void {
    this.#tuner.tune(tokenCounts);
    this.#gemm.replan();
  }

  dispose(): void {
    if (this.#context.isDisposed) return;
    this.#gemm.dispose();
    this.#context.dispose();
  }

  embedding(out: Tensor, table: Tensor, ids: Tensor): void {
    this.#embedding.embedding(this.#stream.value, out, table, ids);
  }

  gatherRows(out: Tensor, x: Tensor, rows: Tensor): void {
    this.#embedding.gatherRows(this.#stream.value, out, x, rows);
  }

  linear(out: Tensor, x: Tensor, weight: Tensor, bias?: Tensor): void {
    checkLinear(this.activationDtype, out, x, weight, bias);
    if (x.dim(0) > 0) this.#gemm.linear(out, x, weight, bias);
  }

  rmsNorm(out: Tensor, x: Tensor, weight: Tensor, eps: number): void {
    this.#norm.rmsNorm(this.#stream.value, out, x, weight, eps);
  }

  addRmsNorm(out: Tensor, residual: Tensor, x: Tensor, weight: Tensor, eps: number): void {
    this.#norm.addRmsNorm(this.#stream.value, out, residual, x, weight, eps);
  }

  layerNorm(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | undefined, eps: number): void {
    this.#norm.layerNorm(this.#stream.value, out, x, weight, bias, eps);
  }

  gatedActivation(out: Tensor, gateUp: Tensor, activation: Activation): void {
    this.#activation.gatedActivation(this.#stream.value, out, gateUp, activation);
  }

  activation(out: Tensor, x: Tensor, activation: Activation): void {
    this.#activation.activation(this.#stream.value, out, x, activation);
  }

  rotary(x: Tensor, heads: number, headDim: number, cosSin: Tensor, positions: Tensor): void {
    this.#rotary.rotary(this.#stream.value, x, heads, headDim, cosSin, positions);
  }

  ropeAndStoreKv(qkv: Tensor, cache: LayerCache, batch: BatchTensors, spec: RopeStoreSpec): void {
    this.#rotary.ropeAndStoreKv(this.#stream.value, qkv, cache, batch, spec);
  }

  attention(out: Tensor, qkv: Tensor, cache: LayerCache, batch: BatchTensors, spec: AttentionSpec): void {
    this.#attention.attention(this.#stream.value, out, qkv, cache, batch, spec);
  }

  prepareBatch(batch: BatchTensors, rows: Tensor, slots: SlotTensors): void {
    this.#batch.prepareBatch(this.#stream.value, batch, rows, slots);
  }

  scatter(target: Tensor, indices: Tensor, values: Tensor): void {
    this.#batch.scatter(this.#stream.value, target, indices, values);
  }

  countTokens(slots: SlotTensors, rows: Tensor): void {
    this.#batch.countTokens(this.#stream.value, slots, rows);
  }

  processLogits(out: Tensor, logits: Tensor, sample: SampleRows, slots: SlotTensors): void {
    this.#sampling.processLogits(this.#stream.value, out, logits, sample, slots);
  }

  sample(out: Tensor, logits: Tensor, sample: SampleRows, slots: SlotTensors): void {
    this.#sampling.sample(this.#stream.value, out, logits, sample, slots);
  }

  logprobs(out: LogprobTensors, logits: Tensor, tokens: Tensor): void {
    this.#logprobs.logprobs(this.#stream.value, out, logits, tokens);
  }
}

/** Stands under a tensor whose size is all that is asked for. */
const UNBOUNDED: DeviceBuffer = { byteLength: Number.MAX_SAFE_INTEGER, address: 0, dispose: () => {} };
