import { availableParallelism } from "node:os";
import { createSHA256 } from "hash-wasm";
import type { Backend } from "../backend/backend.ts";
import type { EngineConfig } from "../base/config.ts";
import type { FloatDType } from "../base/dtype.ts";
import { type EngineDeadError, ModelDataError } from "../base/errors.ts";
import { once } from "../base/once.ts";
import { SplitMix64 } from "../base/random.ts";
import type { SamplingParams } from "../base/sampling-params.ts";
import type { WeightSummary } from "../base/weight-summary.ts";
import { Engine } from "../engine/engine.ts";
import { GrammarStages } from "../grammar/grammar-stages.ts";
import { resolveModel } from "../loader/resolve-model.ts";
import { checkShard } from "../models/check-shard.ts";
import { type ModelConfig, readModelConfig } from "../models/config.ts";
import { readGenerationConfig } from "../models/generation-config.ts";
import type { Runner } from "../runner/types.ts";
import { IncrementalDetokenizer } from "../tokenizer/detokenizer.ts";
import { createPromptEncoder, loadTokenizer } from "../tokenizer/load-text.ts";
import type { PromptEncoder } from "../tokenizer/prompt-encoder.ts";
import { packTokens } from "../tokenizer/token-table.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { EMBEDDED_NAME, embeddedModel, isEmbedded } from "./embedded-model.ts";
import { loadPart, type PartSource } from "./load-part.ts";
import { createBackend, type OpenBackend } from "./open-backend.ts";
import { RankThreads } from "./rank-threads.ts";

/**
 * SHA-256 for all engines of a thread, none of which leaves off in the middle of a digest. Each instance would have a WebAssembly memory, and
 * JavaScriptCore collects all garbage before it makes another where there are several.
 */
const sha256 = once(createSHA256);

/** Prompt tokens that decide how the first output token reads. */
const DETOKENIZER_CONTEXT = 8;

export interface LoadOptions {
  readonly onProgress?: ((progress: LoadProgress) => void) | undefined;
  /** Called with the model's folder, or its GGUF file, once that is complete on disk. */
  readonly onFolder?: (folder: string) => void;
  /** Make an encoder of prompts, too. Default false: the model takes and gives tokens, and text is only decoded. */
  readonly withEncoder?: boolean;
  /** Default `createBackend`; replaceable, so that tests need no GPU. */
  readonly openBackend?: OpenBackend;
}

/** Bytes loaded so far. */
export interface LoadProgress {
  readonly phase: "download" | "weights";
  readonly loadedBytes: number;
  readonly totalBytes: number;
}

/** A model ready to run, and what surrounds it. */
export interface LoadedModel {
  /** Name, folder or file that it was loaded from. */
  readonly name: string;
  readonly modelConfig: ModelConfig;
  readonly device: Backend["name"];
  /** The dtype that the model computes in. */
  readonly dtype: FloatDType;
  /** The form of the weights, and what all ranks hold of them. */
  readonly weights: WeightSummary;
  readonly defaultSampling: SamplingParams;
  /** Undefined with `skipTokenizerInit`. */
  readonly tokenizer: Tokenizer | undefined;
  /** Present with `withEncoder`. */
  readonly encoder: PromptEncoder | undefined;
  readonly engine: Engine;
  /** Calls `listener` when a rank dies while no step is under way; a step says so itself. One listener. */
  onFailure(listener: (reason: EngineDeadError) => void): void;
  /** Frees the engine, the runner and the device. Safe to call twice. */
  dispose(): void;
}

/**
 * Threads that masks of grammars are made in at most: beside those of the engine, the text and the server. Two at least, so that
 * nobody's masks need wait while another request's grammar is compiled.
 */
function maxGrammarStages(): number {
  return Math.min(8, Math.max(2, Math.floor(availableParallelism() / 2)));
}

/**
 * Loads a model: a folder, a GGUF file, a Hugging Face id, or the embedded one.
 * @throws ModelNotFoundError, ModelDataError, DownloadError, DeviceError or ConfigError; nothing stays allocated.
 */
export async function loadModel(
  model: string | undefined,
  config: EngineConfig,
  { onProgress, onFolder, withEncoder = false, openBackend = createBackend }: LoadOptions = {},
): Promise<LoadedModel> {
  const report = (phase: LoadProgress["phase"]) => (loadedBytes: number, totalBytes: number) =>
    onProgress?.({ phase, loadedBytes, totalBytes });
  const folder =
    model === undefined || isEmbedded(model)
      ? embeddedModel()
      : await resolveModel(model, {
          revision: config.revision,
          onProgress: report("download"),
          ...(config.downloadDir !== undefined && { downloadDir: config.downloadDir }),
        });
  onFolder?.(folder);
  const modelConfig = readModelConfig(folder);
  const generation = readGenerationConfig(folder, modelConfig);
  const source = { folder, config, modelConfig };
  const ranks = startRanks(source, report("weights"));
  const opening = Promise.try(() => openBackend(config, modelConfig, ranks?.peers));
  const text = loadText(folder, config, modelConfig, withEncoder);
  const [opened, loaded] = await Promise.allSettled([opening, text]);
  if (opened.status === "rejected") {
    ranks?.dispose();
    throw loaded.status === "rejected" ? loaded.reason : opened.reason;
  }
  const backend = opened.value;
  try {
    if (loaded.status === "rejected") throw loaded.reason;
    const { tokenizer, encoder } = loaded.value;
    const hasher = await sha256();
    const { runner, weights } = await loadRunner(source, backend, ranks, report("weights"));
    const seeds = new SplitMix64(config.seed);
    const grammars =
      tokenizer && new GrammarStages(() => packTokens(tokenizer), modelConfig.vocabSize, maxGrammarStages());
    const engine = new Engine({
      ...config,
      matchers: grammars,
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
      name: model ?? EMBEDDED_NAME,
      device: backend.name,
      dtype: backend.activationDtype,
      weights,
      defaultSampling: config.generationConfig === "auto" ? generation.sampling : {},
      onFailure: (listener) => ranks?.onFailure(listener),
      dispose: () => {
        try {
          engine.dispose();
        } finally {
          grammars?.dispose();
          disposeAll(backend, ranks);
        }
      },
    };
  } catch (error) {
    try {
      disposeAll(backend, ranks);
    } catch {
      // A device that failed may fail to let go, too: what failed first is what is reported.
    }
    throw error;
  }
}

/** The Workers of the other ranks, which begin to load. @throws ConfigError when the model cannot be divided among so many. */
function startRanks(
  source: PartSource,
  onProgress: (loadedBytes: number, totalBytes: number) => void,
): RankThreads | undefined {
  const { tensorParallelSize: size } = source.config;
  checkShard(source.modelConfig, { rank: 0, size });
  return size === 1 ? undefined : new RankThreads(source, size, onProgress);
}

/** Loads this thread's part, and makes the runner of all ranks. */
async function loadRunner(
  source: PartSource,
  backend: Backend,
  ranks: RankThreads | undefined,
  onProgress: (loadedBytes: number, totalBytes: number) => void,
): Promise<{ readonly runner: Runner; readonly weights: WeightSummary }> {
  if (ranks === undefined) {
    const part = await loadPart(source, backend, onProgress);
    return { runner: part.build(), weights: part.weights };
  }
  const own = await loadPart({ ...source, shard: ranks.peers.shard }, backend, (loadedBytes, totalBytes) =>
    ranks.report(0, { loadedBytes, totalBytes }),
  );
  return ranks.build(own);
}

function disposeAll(backend: Backend, ranks: RankThreads | undefined): void {
  try {
    backend.dispose();
  } finally {
    ranks?.dispose();
  }
}

/** The tokenizer and, if wanted, the encoder of prompts. */
async function loadText(folder: string, config: EngineConfig, model: ModelConfig, withEncoder: boolean) {
  const tokenizer = await loadTokenizer(folder, config);
  if (tokenizer !== undefined && tokenizer.vocabSize > model.vocabSize) {
    const rule = `token id ${tokenizer.vocabSize - 1} is outside the model's vocabulary of ${model.vocabSize}`;
    throw new ModelDataError(tokenizer.file, rule);
  }
  return { tokenizer, encoder: withEncoder ? createPromptEncoder(tokenizer, config) : undefined };
}
