import type { Backend, KvScales, ModelShape } from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import type { EngineConfig } from "../base/config.ts";
import type { KvDType } from "../base/dtype.ts";
import { ConfigError } from "../base/errors.ts";
import type { ParameterSpec } from "../base/parameter-spec.ts";
import { lengthOf, type Shard, shareOf, WHOLE } from "../base/shard.ts";
import type { WeightSummary } from "../base/weight-summary.ts";
import { shareOfHeads } from "../layers/delta-net.ts";
import { type DeclaredForm, declaredScheme } from "../layers/schemes/declared-scheme.ts";
import type { OnlineFloat8 } from "../layers/schemes/online-float8.ts";
import { StoredScheme } from "../layers/schemes/stored-scheme.ts";
import { Checkpoint } from "../loader/checkpoint.ts";
import { dummyWeights } from "../loader/dummy-weights.ts";
import { keepDtypes } from "../loader/kept-dtypes.ts";
import { CALIBRATION_TENSORS, readKvScales } from "../loader/kv-scales.ts";
import { floatNamed } from "../loader/stored-dtype.ts";
import { directoryOf } from "../loader/tensor-directory.ts";
import { loadWeights } from "../loader/weights.ts";
import { widenedTensors } from "../loader/widened-tensors.ts";
import { attentionFormsOf } from "../models/attention-forms.ts";
import type { ModelConfig } from "../models/config.ts";
import { layersWithCache } from "../models/kv-heads.ts";
import type { ModelDefinition } from "../models/model.ts";
import { defineModel } from "../models/registry.ts";
import { summaryOf } from "../models/weight-summary.ts";
import type { Exchange } from "../ranks/exchange.ts";
import { KvPlan } from "../runner/kv-plan.ts";
import { ModelRunner } from "../runner/model-runner.ts";
import { stateBytes } from "../runner/state-pool.ts";
import { skippedTensors } from "./skipped-tensors.ts";

/** The part of a model that one rank loads, or all of it. */
export interface PartSource {
  /** The model's folder, or its GGUF file. */
  readonly folder: string;
  readonly config: EngineConfig;
  readonly modelConfig: ModelConfig;
  readonly shard?: Shard;
}

/** Weights of a rank, on its backend. */
export interface LoadedPart {
  readonly weights: WeightSummary;
  /**
   * Makes the runner: gives what memory is left to the KV pool. Where there are several ranks all must do so at the same time:
   * they make the way from device to device, agree through `peers` on what all have room for, and know at the end that all are
   * done.
   */
  build(peers?: Exchange): ModelRunner;
}

/**
 * Loads a rank's part of a model onto its backend.
 * @param onProgress called with bytes of this part
 * @throws ModelNotFoundError, ModelDataError, DeviceError or ConfigError
 */
export async function loadPart(
  { folder, config, modelConfig, shard = WHOLE }: PartSource,
  backend: Backend,
  onProgress: (loadedBytes: number, totalBytes: number) => void,
): Promise<LoadedPart> {
  if (config.quantizeLmHead && modelConfig.tieWordEmbeddings)
    throw new ConfigError(
      "quantizeLmHead",
      "the LM head of this model is its embedding table, which stays in 16 bits: leave quantizeLmHead out",
    );
  const kvDtype: KvDType = config.kvCacheDtype === "auto" ? backend.activationDtype : "float8_e4m3";
  let kernels: Promise<void> | undefined;
  const onDefined = ({ matrices }: ModelDefinition) => {
    kernels = backend.prepare?.({ ...modelShape(modelConfig, config, shard, kvDtype), matrices });
    kernels?.catch(() => {}); // Reported where it is awaited, unless the weights fail first.
  };
  const { definition, parameters, weights, kvScales, widened, skipped } =
    config.loadFormat === "dummy"
      ? loadDummy(config, modelConfig, shard, backend, onDefined)
      : await loadFolder({ folder, config, modelConfig, shard }, backend, { onDefined, onProgress });
  await kernels;
  return {
    weights: { ...summaryOf(definition, backend.activationDtype, parameters), widened, skipped },
    build: (peers) => {
      backend.meetRanks?.();
      const agree = (value: number) => peers?.minimum(value) ?? value;
      const kvShape = { layers: definition.cachedLayers, blockSize: config.blockSize, kvDtype };
      const { stateShape } = definition;
      const bytes = stateShape && stateBytes(stateShape, backend.activationDtype);
      const plan = new KvPlan(modelConfig.maxPositionEmbeddings, kvShape, config, backend, bytes);
      const maxModelLen = agree(plan.maxModelLen);
      const maxNumSeqs = stateShape === undefined ? plan.maxNumSeqs : agree(plan.maxNumSeqs);
      const numSnapshots = stateShape === undefined ? 0 : agree(plan.numSnapshots);
      const built = definition.build(weights, backend, maxModelLen);
      const runner = new ModelRunner(backend, built, {
        ...{ ...config, layout: plan.layout, kvDtype, kvScales, maxModelLen, maxNumSeqs, numSnapshots },
        planBlocks: () => agree(plan.numBlocks()),
      });
      // Whoever comes so far knows that all have.
      agree(0);
      return runner;
    },
  };
}

/** A model, and what was loaded for its parameters. */
interface LoadedWeights {
  readonly definition: ModelDefinition;
  /** The definition's, in the dtypes that they were loaded in. */
  readonly parameters: readonly ParameterSpec[];
  readonly weights: Map<string, Tensor>;
  /** Of each layer's cache, where the checkpoint has any for one in eight bits. */
  readonly kvScales?: readonly KvScales[];
  readonly widened?: WeightSummary["widened"];
  readonly skipped?: WeightSummary["skipped"];
}

/** Called while weights are loaded. */
interface LoadingSteps {
  /** Before anything is read. */
  readonly onDefined: (definition: ModelDefinition) => void;
  readonly onProgress: (loadedBytes: number, totalBytes: number) => void;
}

function loadDummy(
  { quantization, quantizeLmHead, seed }: EngineConfig,
  modelConfig: ModelConfig,
  shard: Shard,
  backend: Backend,
  onDefined: (definition: ModelDefinition) => void,
): LoadedWeights {
  const { quantisation } = modelConfig;
  const online = onlineFormOf(quantization, quantisation);
  const declared: DeclaredForm =
    online === undefined
      ? (quantisation?.declared ?? { kind: "floats" })
      : { kind: "float8", granularity: online };
  const head: DeclaredForm = quantizeLmHead ? { kind: "float8", granularity: "channel" } : { kind: "floats" };
  const definition = defineModel(modelConfig, { shard, scheme: declaredScheme(declared, head) });
  onDefined(definition);
  const parameters = keepDtypes(definition.parameters, backend.matrixDtypes, () => modelConfig.dtype);
  // Parts that are the same would give tokens that are equally likely.
  const weights = dummyWeights(parameters, backend, backend.activationDtype, seed + shard.rank);
  return { definition, parameters, weights };
}

async function loadFolder(
  { folder, config, modelConfig, shard }: Required<PartSource>,
  backend: Backend,
  { onDefined, onProgress }: LoadingSteps,
): Promise<LoadedWeights> {
  using checkpoint = Checkpoint.open(folder);
  const { quantisation } = modelConfig;
  const scheme = new StoredScheme(directoryOf(checkpoint), {
    gptqZeros: quantisation?.gptqZeros,
    needsZeros: quantisation?.needsZeros,
    needsOrder: quantisation?.needsOrder,
    online: onlineFormOf(config.quantization, quantisation),
    quantiseHead: config.quantizeLmHead,
    headCodes: backend.headCodes,
  });
  const definition = defineModel(modelConfig, { shard, scheme });
  onDefined(definition);
  const isFloat8 = config.kvCacheDtype !== "auto";
  const kvScales = isFloat8 ? readKvScales(checkpoint, layersWithCache(modelConfig)) : [];
  const ignored = [...definition.ignored, ...CALIBRATION_TENSORS];
  const options = { dtype: backend.activationDtype, ignored, onProgress };
  const storedDtype = (name: string) => floatNamed(checkpoint.tensors.get(name)?.dtype);
  const parameters = keepDtypes(definition.parameters, backend.matrixDtypes, storedDtype);
  const weights = await loadWeights(checkpoint, parameters, backend, options);
  const widened = widenedTensors(checkpoint, parameters, backend.activationDtype);
  const skipped = skippedTensors(checkpoint, modelConfig);
  return { definition, parameters, weights, widened, skipped, ...(isFloat8 && { kvScales }) };
}

/**
 * The form in which floats are quantised while they are loaded; undefined: not at all.
 * @throws ConfigError for a checkpoint that is quantised in another way, or not at all
 */
export function onlineFormOf(
  quantization: EngineConfig["quantization"],
  stored: ModelConfig["quantisation"],
): OnlineFloat8 | undefined {
  if (quantization === undefined || quantization === stored?.method) return undefined;
  // Its author has chosen which matrices stay floats.
  if (quantization === "fp8" && stored?.declared?.kind === "float8") return undefined;
  const isOnline = quantization.startsWith("fp8");
  const isFloats = stored === undefined || stored.declared?.kind === "floats";
  if (isFloats && isOnline) return quantization === "fp8_per_block" ? "block" : "channel";
  const found = isFloats ? "this one is in floats" : `this one is quantised already (${stored.method})`;
  const wanted = isOnline ? "a model in floats" : "a checkpoint of that method";
  throw new ConfigError(
    "quantization",
    `quantization ${quantization} is for ${wanted}; ${found}: leave the option out`,
  );
}

/** The sizes of a rank's part. */
function modelShape(
  model: ModelConfig,
  { blockSize }: EngineConfig,
  shard: Shard,
  kvDtype: KvDType,
): ModelShape {
  const part = (count: number) => lengthOf(shareOf(count, shard));
  return {
    ...model,
    vocabSize: part(model.vocabSize),
    intermediateSize: part(model.intermediateSize),
    experts: model.experts && {
      count: model.experts.count,
      intermediateSize: part(model.experts.intermediateSize),
    },
    numHeads: part(model.numHeads),
    numKvHeads: part(model.numKvHeads),
    deltaNet: model.linearAttention && shareOfHeads(model.linearAttention, shard),
    ...{ attentionForms: attentionFormsOf(model, shard), blockSize, kvDtype, softCap: model.logitSoftCap },
  };
}
