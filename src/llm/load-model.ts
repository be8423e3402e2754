import { join } from "node:path";
import { createSHA256 } from "hash-wasm";
import type { Backend, ModelShape } from "../backend/backend.ts";
import { CpuBackend } from "../backend/cpu/cpu-backend.ts";
import { CudaBackend } from "../backend/cuda/cuda-backend.ts";
import { GpuOpening, type Rehearsal } from "../backend/cuda/gpu-opening.ts";
import type { EngineConfig } from "../base/config.ts";
import type { FloatDType } from "../base/dtype.ts";
import { ConfigError, ModelDataError } from "../base/errors.ts";
import { SplitMix64 } from "../base/random.ts";
import type { SamplingParams } from "../base/sampling-params.ts";
import { gpuCount, openCuda } from "../cuda/open-cuda.ts";
import { Engine } from "../engine/engine.ts";
import { rotaryDim } from "../layers/rotary.ts";
import { Checkpoint } from "../loader/checkpoint.ts";
import { dummyWeights } from "../loader/dummy-weights.ts";
import { resolveModel } from "../loader/resolve-model.ts";
import { loadWeights } from "../loader/weights.ts";
import { type ModelConfig, readModelConfig } from "../models/config.ts";
import { readGenerationConfig } from "../models/generation-config.ts";
import { defineModel } from "../models/registry.ts";
import { KvPlan } from "../runner/kv-plan.ts";
import { ModelRunner } from "../runner/model-runner.ts";
import { IncrementalDetokenizer } from "../tokenizer/detokenizer.ts";
import { createPromptEncoder, loadTokenizer } from "../tokenizer/load-text.ts";
import type { PromptEncoder } from "../tokenizer/prompt-encoder.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";

/** The folder of the model that ships with the package. */
export const EMBEDDED_MODEL = join(import.meta.dir, "../../models", "tiny-stories");

/** Prompt tokens that decide how the first output token reads. */
const DETOKENIZER_CONTEXT = 8;

/** Tokens of a product that is computed for nothing: enough for the kernels of large ones. */
const REHEARSED_TOKENS = 2 ** 14;

export interface LoadOptions {
  readonly onProgress?: ((progress: LoadProgress) => void) | undefined;
  /** Called with the model's folder once that is complete on disk. */
  readonly onFolder?: (folder: string) => void;
  /** Make an encoder of prompts, too. Default false: the model takes and gives tokens, and text is only decoded. */
  readonly withEncoder?: boolean;
  /** Default `createBackend`; replaceable, so that tests need no GPU. */
  readonly openBackend?: OpenBackend;
}

export type OpenBackend = (config: EngineConfig, model: ModelConfig) => Backend | Promise<Backend>;

/** Bytes loaded so far. */
export interface LoadProgress {
  readonly phase: "download" | "weights";
  readonly loadedBytes: number;
  readonly totalBytes: number;
}

/** A model ready to run, and what surrounds it. */
export interface LoadedModel {
  /** Name or folder it was loaded from. */
  readonly name: string;
  readonly modelConfig: ModelConfig;
  readonly device: Backend["name"];
  /** The dtype that the model computes in. */
  readonly dtype: FloatDType;
  readonly defaultSampling: SamplingParams;
  /** Undefined with `skipTokenizerInit`. */
  readonly tokenizer: Tokenizer | undefined;
  /** Present with `withEncoder`. */
  readonly encoder: PromptEncoder | undefined;
  readonly engine: Engine;
  /** Frees the engine, the runner and the device. Safe to call twice. */
  dispose(): void;
}

/**
 * Loads a model: a folder, a Hugging Face id, or the embedded one.
 * @throws ModelNotFoundError, ModelDataError, DownloadError, DeviceError or ConfigError; nothing stays allocated.
 */
export async function loadModel(
  model: string | undefined,
  config: EngineConfig,
  { onProgress, onFolder, withEncoder = false, openBackend = createBackend }: LoadOptions = {},
): Promise<LoadedModel> {
  if (config.tensorParallelSize > 1)
    throw new ConfigError("tensorParallelSize", "tensorParallelSize above 1 is not supported yet");
  const report = (phase: LoadProgress["phase"]) => (loadedBytes: number, totalBytes: number) =>
    onProgress?.({ phase, loadedBytes, totalBytes });
  const folder =
    model === undefined
      ? EMBEDDED_MODEL
      : await resolveModel(model, {
          revision: config.revision,
          onProgress: report("download"),
          ...(config.downloadDir !== undefined && { downloadDir: config.downloadDir }),
        });
  onFolder?.(folder);
  const modelConfig = readModelConfig(folder);
  const definition = defineModel(modelConfig);
  const generation = readGenerationConfig(folder, modelConfig);
  const opening = Promise.try(() => openBackend(config, modelConfig));
  const text = loadText(folder, config, modelConfig, withEncoder);
  const [opened, loaded] = await Promise.allSettled([opening, text]);
  if (opened.status === "rejected") throw loaded.status === "rejected" ? loaded.reason : opened.reason;
  const backend = opened.value;
  try {
    if (loaded.status === "rejected") throw loaded.reason;
    const { tokenizer, encoder } = loaded.value;
    const hasher = await createSHA256();
    const kernels = backend.prepare?.(modelShape(modelConfig, config));
    kernels?.catch(() => {}); // Reported where it is awaited, unless the weights fail first.
    // Dense weights are multiplied, and keys and values attended to, in the dtype of the activations.
    const [weightDtype, kvDtype] = [backend.activationDtype, backend.activationDtype];
    const weights =
      config.loadFormat === "dummy"
        ? dummyWeights(definition.parameters, backend, weightDtype, config.seed)
        : await loadFolder(folder, definition, backend, weightDtype, report("weights"));
    await kernels;
    const kvShape = { ...definition.kvHeads, blockSize: config.blockSize, kvDtype };
    const plan = new KvPlan(modelConfig.maxPositionEmbeddings, kvShape, config, backend);
    const built = definition.build(weights, backend, plan.maxModelLen);
    const runner = new ModelRunner(backend, built, {
      ...config,
      kvDtype,
      maxModelLen: plan.maxModelLen,
      planBlocks: () => plan.numBlocks(),
    });
    const seeds = new SplitMix64(config.seed);
    const engine = new Engine({
      ...config,
      runner,
      overlap: config.overlapScheduling ?? backend.name === "cuda",
      eosTokenIds: generation.eosTokenIds,
      hasher,
      clock: () => performance.now() / 1000,
      nextSeed: () => seeds.next(),
      ...(tokenizer && {
        createTextStream: (promptTokenIds, sampling) =>
          new IncrementalDetokenizer(tokenizer, {
            skipSpecialTokens: sampling.skipSpecialTokens,
            context: [...promptTokenIds.subarray(-DETOKENIZER_CONTEXT)],
          }),
        decodeToken: (id: number) => tokenizer.decode([id], { skipSpecialTokens: false }),
      }),
    });
    return {
      ...{ modelConfig, tokenizer, encoder, engine },
      name: model ?? "tiny-stories",
      device: backend.name,
      dtype: backend.activationDtype,
      defaultSampling: config.generationConfig === "auto" ? generation.sampling : {},
      dispose: () => {
        try {
          engine.dispose();
        } finally {
          backend.dispose();
        }
      },
    };
  } catch (error) {
    try {
      backend.dispose();
    } catch {
      // A device that failed may fail to let go, too: what failed first is what is reported.
    }
    throw error;
  }
}

/** The tokenizer and, if wanted, the encoder of prompts. */
async function loadText(folder: string, config: EngineConfig, model: ModelConfig, withEncoder: boolean) {
  const tokenizer = await loadTokenizer(folder, config);
  if (tokenizer !== undefined && tokenizer.vocabSize > model.vocabSize) {
    const rule = `token id ${tokenizer.vocabSize - 1} is outside the model's vocabulary of ${model.vocabSize}`;
    throw new ModelDataError(join(folder, "tokenizer.json"), rule);
  }
  return { tokenizer, encoder: withEncoder ? createPromptEncoder(tokenizer, config) : undefined };
}

async function loadFolder(
  folder: string,
  definition: ReturnType<typeof defineModel>,
  backend: Backend,
  dtype: FloatDType,
  onProgress: (loadedBytes: number, totalBytes: number) => void,
) {
  using checkpoint = Checkpoint.open(folder);
  const options = { dtype, ignored: definition.ignored, onProgress };
  return await loadWeights(checkpoint, definition.parameters, backend, options);
}

/** The GPU if there is one and it is not refused, else the CPU. Opening a GPU leaves this thread free meanwhile. */
export async function createBackend(config: EngineConfig, model: ModelConfig): Promise<Backend> {
  const { device, dtype, batchInvariant } = config;
  const opening = device === "cpu" ? undefined : GpuOpening.begin(rehearsal(config, model));
  try {
    await opening?.opened;
    if (device === "cuda" || (device === "auto" && gpuCount() > 0))
      return new CudaBackend(openCuda(), cudaDtype(dtype, model), { opening, batchInvariant });
  } finally {
    void opening?.finish();
  }
  if (dtype !== "auto" && dtype !== "float32")
    throw new ConfigError("dtype", `the CPU backend computes in float32; ${dtype} needs device: "cuda"`);
  return new CpuBackend();
}

/** The first product of the largest step, which a start computes first. */
function rehearsal({ dtype, maxNumBatchedTokens }: EngineConfig, model: ModelConfig): Rehearsal {
  return {
    dtype: cudaDtype(dtype, model),
    tokens: Math.min(maxNumBatchedTokens, REHEARSED_TOKENS),
    inFeatures: model.hiddenSize,
    outFeatures: (model.numHeads + 2 * model.numKvHeads) * model.headDim,
  };
}

function modelShape(model: ModelConfig, { blockSize }: EngineConfig): ModelShape {
  return { ...model, rotaryDim: rotaryDim(model.headDim, model.rope), blockSize };
}

function cudaDtype(dtype: EngineConfig["dtype"], model: ModelConfig): FloatDType {
  if (dtype !== "auto") return dtype;
  return model.dtype === "float16" ? "float16" : "bfloat16";
}
