import type { FloatDType } from "../../base/dtype.ts";
import type { TensorMapShape } from "../../cuda/tensor-map.ts";
import type { ModelShape } from "../backend.ts";
import type { DeviceBuffer } from "../tensor.ts";
import type { KernelLibrary } from "./kernel-library.ts";
import type { KernelUnit } from "./kernel-source.ts";
import { ActivationOps } from "./ops/activation.ts";
import { AttendOps } from "./ops/attend.ts";
import { BatchOps } from "./ops/batch.ts";
import type { CandidateExchange } from "./ops/candidates.ts";
import { CapLogitsOps } from "./ops/cap-logits.ts";
import { DecodeLayers } from "./ops/decode-layers.ts";
import { DeltaNetOps } from "./ops/delta-net.ts";
import { DrawSmall } from "./ops/draw-small.ts";
import { DrawWgmma } from "./ops/draw-wgmma.ts";
import { EmbeddingOps } from "./ops/embedding.ts";
import { ExpertOps } from "./ops/experts.ts";
import { expertsWeight, formOfExperts, plainForm } from "./ops/experts-product.ts";
import { Float8Linear } from "./ops/float8-linear.ts";
import { LargeLinear } from "./ops/large-linear.ts";
import { LogprobOps } from "./ops/logprobs.ts";
import { isDense, productsOf, quantisedOf } from "./ops/model-products.ts";
import { NormOps } from "./ops/norm.ts";
import { ProcessLogitsOps } from "./ops/process-logits.ts";
import { QuantisedLinear } from "./ops/quantised-linear.ts";
import { QuantisedOps } from "./ops/quantised-ops.ts";
import { QuantisedSplit } from "./ops/quantised-split.ts";
import { QuantisedWeights } from "./ops/quantised-weights.ts";
import { QuantisedWgmma } from "./ops/quantised-wgmma.ts";
import { RotaryTableOps } from "./ops/rotary-table.ts";
import { SamplingOps } from "./ops/sampling.ts";
import { SmallLinear } from "./ops/small-linear.ts";
import { WgmmaLinear } from "./ops/wgmma-linear.ts";

export interface KernelOpsOptions {
  /** bfloat16 or float16. */
  readonly dtype: FloatDType;
  /** Multiprocessors of the GPU, and what they have of shared memory; see `SmallLinearOptions`. */
  readonly smCount: number;
  readonly sharedBytesPerBlock: number;
  readonly sharedBytesPerSm: number;
  /** See `KernelOptions.dependentLaunch`. */
  readonly dependentLaunch: boolean;
  /** See `AttentionOptions`. */
  readonly batchInvariant?: boolean;
  readonly hopper: boolean;
  /** See `CudaBackendOptions`. */
  readonly quantiseActivations?: boolean;
  /** Whether decode steps may be whole layers as one launch, where the GPU can: products are then not summed over ranks. */
  readonly wholeLayers: boolean;
  /** See `SamplingOptions`. */
  readonly ranks?: CandidateExchange | undefined;
  readonly upload: (address: number, bytes: Uint8Array) => void;
  readonly encodeTensorMap: (shape: TensorMapShape) => Uint8Array;
  /** Device memory that the backend frees. */
  readonly allocate: (byteLength: number) => DeviceBuffer;
  /** The same, filled with zeros. */
  readonly allocateZeroed: (byteLength: number) => DeviceBuffer;
  /** Enqueues a copy on the device. */
  readonly copy: (target: number, source: number, byteLength: number) => void;
  /** Enqueues zeros for all of the memory. */
  readonly clear: (memory: DeviceBuffer) => void;
}

/** The ops that are kernels of Octavo's own: all but matrix products. */
export class KernelOps {
  readonly rotaryTable: RotaryTableOps;
  readonly embedding: EmbeddingOps;
  readonly norm: NormOps;
  readonly activation: ActivationOps;
  readonly experts: ExpertOps;
  readonly attend: AttendOps;
  readonly deltaNet: DeltaNetOps;
  readonly batch: BatchOps;
  readonly processLogits: ProcessLogitsOps;
  readonly capLogits: CapLogitsOps;
  readonly sampling: SamplingOps;
  readonly logprobs: LogprobOps;
  readonly quantised: QuantisedOps;
  /** Undefined on GPUs without bulk copies. */
  readonly smallLinear: SmallLinear | undefined;
  /** Undefined on GPUs but Hopper's. */
  readonly wgmmaLinear: WgmmaLinear | undefined;
  readonly drawSmall: DrawSmall | undefined;
  /** Undefined on GPUs other than Hopper. */
  readonly largeLinear: LargeLinear | undefined;
  /** Undefined on GPUs without wgmma. */
  readonly drawWgmma: DrawWgmma | undefined;
  readonly decodeLayers: DecodeLayers | undefined;

  constructor(library: KernelLibrary, options: KernelOpsOptions) {
    const { dtype, allocate } = options;
    this.rotaryTable = new RotaryTableOps(library, options);
    this.embedding = new EmbeddingOps(library, dtype, options);
    this.norm = new NormOps(library, dtype, options);
    this.activation = new ActivationOps(library, dtype, options);
    const weights = new QuantisedWeights(library, dtype, options);
    this.experts = new ExpertOps(library, this.norm, weights, options);
    this.attend = new AttendOps(library, options);
    this.deltaNet = new DeltaNetOps(library, options);
    this.batch = new BatchOps(library, options);
    this.processLogits = new ProcessLogitsOps(library, options);
    this.capLogits = new CapLogitsOps(library, options);
    this.sampling = new SamplingOps(library, allocate, options);
    this.logprobs = new LogprobOps(library, allocate, options);
    const fused = !options.batchInvariant;
    this.quantised = new QuantisedOps({
      weights,
      few: fused ? new QuantisedLinear(library, dtype, options) : undefined,
      float8:
        fused && options.hopper && options.quantiseActivations
          ? new Float8Linear(library, dtype, options)
          : undefined,
      split: fused && options.hopper ? new QuantisedSplit(library, dtype, options) : undefined,
      some: fused && options.hopper ? new QuantisedWgmma(library, dtype, options) : undefined,
    });
    if (options.hopper) this.wgmmaLinear = new WgmmaLinear(library, dtype, options);
    if (options.dependentLaunch) {
      this.smallLinear = new SmallLinear(library, dtype, options);
      this.drawSmall = new DrawSmall(library, dtype, this.sampling, allocate, options);
    }
    if (options.hopper) this.largeLinear = new LargeLinear(library, options);
    if (options.hopper) this.drawWgmma = new DrawWgmma(library, dtype, this.norm, this.sampling, options);
    if (options.hopper && options.dependentLaunch && options.wholeLayers)
      this.decodeLayers = new DecodeLayers(library, dtype, options);
  }

  /**
   * All that a model of these sizes launches, for compiling ahead: what takes longest first, as that decides the whole.
   * @throws UnsupportedModelError for head shapes that the attention kernels cannot take.
   */
  units(shape: ModelShape): KernelUnit[] {
    const isCapped = shape.softCap !== undefined;
    return [
      ...this.sampling.units(),
      ...this.attend.units(shape),
      ...(shape.deltaNet ? this.deltaNet.units(shape.deltaNet) : []),
      ...(this.drawWgmma?.units(shape.vocabSize, shape.hiddenSize, isCapped) ?? []),
      ...(this.drawSmall?.units(shape.vocabSize, shape.hiddenSize, isCapped) ?? []),
      ...this.#layerUnits(shape),
      ...this.#linearUnits(shape),
      ...this.#expertUnits(shape),
      ...this.logprobs.units(),
      ...this.processLogits.units(),
      ...(isCapped ? this.capLogits.units(shape.vocabSize) : []),
      ...this.norm.units(shape.hiddenSize),
      ...this.activation.units(shape.intermediateSize),
      ...this.batch.units(),
      ...this.rotaryTable.units(),
      ...this.embedding.units(shape.hiddenSize),
    ];
  }

  /** Of a mixture of experts, and of its router. */
  #expertUnits({ experts, hiddenSize, matrices = [] }: ModelShape): KernelUnit[] {
    if (experts === undefined) return [];
    const router = { norm: true, floatOut: true };
    const { count, intermediateSize, format = "dense" } = experts;
    const formOf = (rows: number, columns: number) => {
      const found = matrices.find(({ shape: [n, k] }) => n === rows && k === columns);
      return found === undefined ? plainForm(format) : formOfExperts(expertsWeight(found));
    };
    const forms = {
      gateUp: formOf(2 * count * intermediateSize, hiddenSize),
      down: formOf(count * hiddenSize, intermediateSize),
    };
    return [
      ...this.experts.units({ count, intermediateSize, hiddenSize, forms }),
      ...(this.smallLinear?.units(experts.count, hiddenSize, router) ?? []),
    ];
  }

  /** Of products by matrices in floats, and by quantised ones. */
  #linearUnits(shape: ModelShape): KernelUnit[] {
    const products = productsOf(shape);
    const dense = products.filter((product) => isDense(product, shape));
    const { activation: kind = "silu" } = shape;
    return [
      ...dense.flatMap((product) => {
        const { outFeatures, inFeatures, gated } = product;
        const large = gated ? this.largeLinear?.units(outFeatures, inFeatures, { kind, gated }) : undefined;
        return [...(large ?? []), ...(this.smallLinear?.units(outFeatures, inFeatures, product) ?? [])];
      }),
      ...products.flatMap((product) =>
        quantisedOf(product, shape).flatMap((weight) => this.quantised.units(weight, product)),
      ),
    ];
  }

  /** The layers as one launch are for matrices in floats. */
  #layerUnits(shape: ModelShape): KernelUnit[] {
    const isWhole = productsOf(shape).every((product) => product.floatOut || isDense(product, shape));
    return isWhole ? (this.decodeLayers?.units(shape) ?? []) : [];
  }
}
