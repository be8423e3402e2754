import type { EngineConfig } from "../base/config.ts";
import type { RequestMetrics } from "../base/outputs.ts";
import type { ResolvedSamplingParams, SamplingParams } from "../base/sampling-params.ts";
import type { Engine, EngineStats } from "../engine/engine.ts";
import type { RequestLimits } from "../engine/request.ts";
import type { LoadedModel, LoadProgress } from "../llm/load-model.ts";
import type { ChatPrompt, EncodedPrompt, Prompt } from "../tokenizer/prompt-encoder.ts";
import type { EncodedError } from "./error-codec.ts";
import type { PackedLogprobs } from "./logprob-codec.ts";
import type { PackedDeltas } from "./step-codec.ts";

/** The first message to the engine worker. */
export interface LoadMessage {
  readonly model: string | undefined;
  readonly config: EngineConfig;
}

/** What the engine worker is told once it is ready. Requests go by number here. */
export type EngineMessage =
  | AddMessage
  | { readonly type: "abort"; readonly request: number }
  | { readonly type: "resetPrefixCache" }
  /** Free the device, answer `closed`. */
  | { readonly type: "shutdown" };

/** A request that the main thread has validated. */
export interface AddMessage {
  readonly type: "add";
  readonly request: number;
  readonly promptTokenIds: readonly number[];
  readonly sampling: ResolvedSamplingParams;
  readonly badWordTokens: readonly (readonly number[])[];
  readonly cacheSalt: string | undefined;
  /** Seconds on the worker's clock. */
  readonly arrivalTime: number;
  /** Its signal had fired already: nothing is computed, but it ends like any other. */
  readonly aborted: boolean;
}

/** What the engine worker answers. */
export type EngineReply =
  | { readonly type: "progress"; readonly progress: LoadProgress }
  | { readonly type: "ready"; readonly info: EngineInfo; readonly stats: EngineStats }
  /** Loading failed; nothing stays allocated. */
  | { readonly type: "failed"; readonly error: EncodedError }
  | StepMessage
  /** A request was not queued, although it had been validated. */
  | { readonly type: "refused"; readonly request: number; readonly error: EncodedError }
  /** In the order of the requests for it. */
  | { readonly type: "prefixCacheReset"; readonly done: boolean; readonly stats: EngineStats }
  /** The engine has died; no further step comes. */
  | { readonly type: "dead"; readonly error: EncodedError }
  | { readonly type: "closed" };

/** What the main thread knows of the model and the engine. */
export interface EngineInfo
  extends Pick<LoadedModel, "name" | "folder" | "modelConfig" | "device" | "dtype">,
    Pick<Engine, "limits" | "cacheConfig" | "eosTokenIds"> {
  readonly limits: RequestLimits;
  readonly defaultSampling: SamplingParams;
  /** `performance.timeOrigin` of the worker, milliseconds. */
  readonly timeOrigin: number;
}

/** One engine step. Log-probabilities are packed in the order `started`, `deltas`. */
export interface StepMessage {
  readonly type: "step";
  readonly deltas: PackedDeltas;
  /** Requests that were computed for the first time; with overlap their step has only been launched. */
  readonly scheduled: readonly { readonly request: number; readonly metrics: RequestMetrics }[];
  /** Requests that have their first delta here. */
  readonly started: readonly StartedRequest[];
  /** Requests that have their last delta here. */
  readonly finished: readonly { readonly request: number; readonly metrics: RequestMetrics }[];
  readonly stats: EngineStats;
  readonly numBatchedTokens: number;
}

export interface StartedRequest {
  readonly request: number;
  readonly numCachedTokens: number;
  readonly promptLogprobs: PackedLogprobs | undefined;
  readonly metrics: RequestMetrics;
}

/** The first message to the text worker. */
export interface OpenTextMessage {
  readonly folder: string;
  readonly config: EngineConfig;
}

/** The jobs of the text worker and their results. */
export interface TextJobs {
  /** Resolves once the tokenizer is loaded. */
  readonly open: { readonly input: undefined; readonly output: undefined };
  readonly encode: {
    readonly input: {
      readonly prompt: Prompt | ChatPrompt;
      readonly addSpecialTokens: boolean | undefined;
      readonly badWords: readonly string[];
    };
    readonly output: EncodedPrompt & { readonly badWordTokens: readonly (readonly number[])[] };
  };
  /** The tokens as the vocabulary spells them. */
  readonly tokenStrings: { readonly input: readonly number[]; readonly output: readonly string[] };
  readonly detokenize: { readonly input: readonly number[]; readonly output: string };
}

export type TextJobName = keyof TextJobs;

/** Jobs are done in the order of their arrival. */
export interface TextMessage<K extends TextJobName = TextJobName> {
  readonly call: number;
  readonly job: K;
  readonly input: TextJobs[K]["input"];
}

export type TextReply =
  | { readonly call: number; readonly output: unknown }
  | { readonly call: number; readonly error: EncodedError };
