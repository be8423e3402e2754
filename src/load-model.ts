import { existsSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { createXXHash128 } from "hash-wasm";
import type { Backend } from "./backend/backend.ts";
import { CpuBackend } from "./backend/cpu/cpu-backend.ts";
import type { EngineConfig } from "./base/config.ts";
import { ConfigError, DeviceError, ModelDataError } from "./base/errors.ts";
import { SplitMix64 } from "./base/random.ts";
import type { SamplingParams } from "./base/sampling-params.ts";
import { Engine } from "./engine/engine.ts";
import { Parameters } from "./layers/layer.ts";
import { Checkpoint } from "./loader/checkpoint.ts";
import { dummyWeights } from "./loader/dummy-weights.ts";
import { resolveModel } from "./loader/hub.ts";
import { loadWeights } from "./loader/weights.ts";
import { type ModelConfig, readModelConfig } from "./models/config.ts";
import { readGenerationConfig } from "./models/generation-config.ts";
import { defineModel } from "./models/registry.ts";
import { kvBlockBytes } from "./runner/kv-cache.ts";
import { ModelRunner } from "./runner/model-runner.ts";
import { ChatTemplate } from "./tokenizer/chat-template.ts";
import { IncrementalDetokenizer } from "./tokenizer/detokenizer.ts";
import { Tokenizer } from "./tokenizer/tokenizer.ts";

/** The folder of the model that ships with the package. */
export const EMBEDDED_MODEL = join(import.meta.dir, "..", "models", "tiny-stories");

/** KV cache of the CPU backend unless `kvCacheMemoryBytes` says otherwise. */
const CPU_KV_CACHE_BYTES = 2 ** 30;

/** Prompt tokens that decide how the first output token reads. */
const DETOKENIZER_CONTEXT = 8;

/** How far loading has come. */
export interface LoadProgress {
  readonly phase: "download" | "weights";
  readonly loadedBytes: number;
  readonly totalBytes: number;
}

/** A model ready to run, and what surrounds it. */
export interface LoadedModel {
  /** Name or folder it was loaded from. */
  readonly name: string;
  readonly folder: string;
  readonly modelConfig: ModelConfig;
  readonly maxModelLen: number;
  readonly device: Backend["name"];
  readonly tokenizer: Tokenizer | undefined;
  readonly chatTemplate: ChatTemplate | undefined;
  readonly defaultSampling: SamplingParams;
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
  onProgress?: (progress: LoadProgress) => void,
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
  const modelConfig = readModelConfig(folder);
  const definition = defineModel(modelConfig);
  const generation = readGenerationConfig(folder, modelConfig);
  const tokenizer = config.skipTokenizerInit ? undefined : await Tokenizer.load(folder);
  if (tokenizer !== undefined && tokenizer.vocabSize > modelConfig.vocabSize) {
    const rule = `token id ${tokenizer.vocabSize - 1} is outside the model's vocabulary of ${modelConfig.vocabSize}`;
    throw new ModelDataError(join(folder, "tokenizer.json"), rule);
  }
  const chatTemplate = loadChatTemplate(tokenizer, config.chatTemplate);

  const hasher = await createXXHash128();
  const backend = createBackend(config);
  try {
    const weights =
      config.loadFormat === "dummy"
        ? dummyWeights(definition.parameters, backend, config.seed)
        : loadFolder(folder, definition, backend, report("weights"));
    const { maxModelLen, numBlocks } = planContext(modelConfig, config, backend);
    const built = definition.build(new Parameters(weights), backend, maxModelLen);
    const runner = new ModelRunner(backend, built, {
      ...config,
      maxModelLen,
      planBlocks: () => numBlocks,
    });
    const seeds = new SplitMix64(config.seed);
    const engine = new Engine({
      runner,
      enablePrefixCaching: config.enablePrefixCaching,
      maxNumSeqs: config.maxNumSeqs,
      maxNumBatchedTokens: config.maxNumBatchedTokens,
      overlap: config.overlapScheduling ?? backend.name === "cuda",
      eosTokenIds: generation.eosTokenIds,
      hasher,
      clock: () => performance.now() / 1000,
      nextSeed: () => seeds.next(),
      ...(tokenizer && {
        createTextStream: (promptTokenIds, sampling) =>
          new IncrementalDetokenizer(tokenizer, {
            skipSpecialTokens: sampling.skipSpecialTokens,
            context: promptTokenIds.slice(-DETOKENIZER_CONTEXT),
          }),
        decodeToken: (id: number) => tokenizer.decode([id], { skipSpecialTokens: false }),
      }),
    });
    return {
      ...{ name: model ?? "tiny-stories", folder, modelConfig, maxModelLen, device: backend.name },
      ...{ tokenizer, chatTemplate },
      defaultSampling: config.generationConfig === "auto" ? generation.sampling : {},
      engine,
      dispose: () => {
        engine.dispose();
        backend.dispose();
      },
    };
  } catch (error) {
    backend.dispose();
    throw error;
  }
}

/** `override`: a template's source or the path of one. */
function loadChatTemplate(tokenizer: Tokenizer | undefined, override: string | undefined) {
  const isFile = override !== undefined && existsSync(override) && statSync(override).isFile();
  if (override !== undefined && !isFile && !override.includes("{"))
    throw new ConfigError("chatTemplate", `chatTemplate ${override} is no file and no template`);
  const source = isFile ? readFileSync(override, "utf8") : (override ?? tokenizer?.chatTemplate);
  return source === undefined ? undefined : new ChatTemplate(source, tokenizer?.specialTokens);
}

function loadFolder(
  folder: string,
  definition: ReturnType<typeof defineModel>,
  backend: Backend,
  onProgress: (loadedBytes: number, totalBytes: number) => void,
) {
  using checkpoint = Checkpoint.open(folder);
  return loadWeights(checkpoint, definition.parameters, backend, { ignored: definition.ignored, onProgress });
}

function createBackend(config: EngineConfig): Backend {
  if (config.device === "cuda") throw new DeviceError("the CUDA backend is not available in this version");
  if (config.dtype !== "auto" && config.dtype !== "float32")
    throw new ConfigError(
      "dtype",
      `the CPU backend computes in float32; ${config.dtype} needs device: "cuda"`,
    );
  return new CpuBackend();
}

/** Decides the context length and the size of the KV pool. */
function planContext(model: ModelConfig, config: EngineConfig, backend: Backend) {
  const limit = model.maxPositionEmbeddings;
  if (config.maxModelLen !== undefined && config.maxModelLen > limit)
    throw new ConfigError(
      "maxModelLen",
      `maxModelLen ${config.maxModelLen} exceeds the model's limit of ${limit}`,
    );
  const wanted = config.maxModelLen ?? limit;
  const { blockSize, maxNumSeqs } = config;
  const blockBytes = kvBlockBytes({ ...model, blockSize }, backend.activationDtype);
  const blocksPerSeq = Math.ceil(wanted / blockSize);
  const bytes = config.kvCacheMemoryBytes ?? CPU_KV_CACHE_BYTES;
  const numBlocks = Math.min(Math.floor(bytes / blockBytes), blocksPerSeq * maxNumSeqs);
  const fits = Math.min(wanted, numBlocks * blockSize);
  if (fits === 0 || (config.maxModelLen !== undefined && fits < config.maxModelLen)) {
    const needed = blocksPerSeq * blockBytes;
    throw new ConfigError(
      "kvCacheMemoryBytes",
      `a KV cache of ${bytes} bytes holds ${fits} tokens; a context of ${wanted} needs ${needed} bytes`,
    );
  }
  return { maxModelLen: fits, numBlocks };
}
