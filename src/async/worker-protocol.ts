import type { EngineConfig } from "../base/config.ts";
import type { EngineStats } from "../base/engine-stats.ts";
import type { EngineView } from "../base/engine-view.ts";
import type { SamplingParams } from "../base/sampling-params.ts";
import type { ResolvedOutputs } from "../base/structured-outputs.ts";
import type { Engine } from "../engine/engine.ts";
import type { EngineRequest } from "../engine/request.ts";
import type { TextShape } from "../grammar/text-shape.ts";
import type { LoadedModel, LoadProgress } from "../llm/load-model.ts";
import type { EncodedError } from "../threads/error-codec.ts";
import type { ChatPrompt, Prompt, PromptOptions } from "../tokenizer/prompt-encoder.ts";
import type { PackedTokens } from "../tokenizer/token-table.ts";
import type { PackedStep } from "./step-codec.ts";

/** The first message to the engine worker. */
export interface LoadMessage {
  readonly model: string | undefined;
  readonly config: EngineConfig;
  /** The port of the messages that follow, which unlike the Worker itself can be drained. Transferred. */
  readonly inbox: MessagePort;
}

/** A message to the engine worker's inbox, for when it is ready. */
export type EngineMessage =
  | AddMessage
  | { readonly type: "abort"; readonly ids: readonly string[] }
  | { readonly type: "resetPrefixCache" }
  | { readonly type: "view" }
  /** Free the device, answer `closed`. */
  | { readonly type: "shutdown" };

/** Requests that were submitted together. Their prompts are transferred. */
export interface AddMessage {
  readonly type: "add";
  /** Ids are decimal numbers; times are on the worker's clock. */
  readonly requests: readonly EngineRequest[];
  /** Their signal had fired already: nothing is computed, but they end like any other. */
  readonly isAborted: boolean;
}

/** A message from the engine worker. */
export type EngineReply =
  /** The model's folder or file, complete on disk. */
  | { readonly type: "folder"; readonly folder: string }
  | { readonly type: "progress"; readonly progress: LoadProgress }
  | { readonly type: "ready"; readonly info: EngineInfo; readonly stats: EngineStats }
  /** Loading failed; nothing stays allocated. */
  | { readonly type: "failed"; readonly error: EncodedError }
  | { readonly type: "step"; readonly step: PackedStep; readonly stats: EngineStats }
  /** In the order of the requests for it. */
  | { readonly type: "prefixCacheReset"; readonly done: boolean; readonly stats: EngineStats }
  /** In the order of the requests for it. Its arrays are transferred. */
  | { readonly type: "view"; readonly view: EngineView }
  /** The engine has died; no further step comes. */
  | { readonly type: "dead"; readonly error: EncodedError }
  | { readonly type: "closed" };

/** The main thread's knowledge of the model and the engine. */
export interface EngineInfo
  extends Pick<LoadedModel, "name" | "modelConfig" | "device" | "dtype" | "weights">,
    Pick<Engine, "limits" | "cacheConfig"> {
  readonly defaultSampling: SamplingParams;
  /** `performance.timeOrigin` of the worker, milliseconds. */
  readonly timeOrigin: number;
}

/** The jobs of a text worker and their results. Token ids that result are transferred. */
export interface TextJobs {
  /** Loads the tokenizer; the first job of each worker. */
  readonly open: {
    readonly input: { readonly folder: string; readonly config: EngineConfig };
    readonly output: TextInfo;
  };
  /** The vocabulary. */
  readonly tokens: { readonly input: undefined; readonly output: PackedTokens };
  readonly encode: {
    readonly input: PromptOptions & { readonly prompt: Prompt | ChatPrompt };
    readonly output: EncodedText;
  };
  readonly badWordTokens: {
    readonly input: readonly string[];
    readonly output: readonly (readonly number[])[];
  };
  /** The EBNF of plain outputs. */
  readonly grammar: { readonly input: ResolvedOutputs; readonly output: string };
  /** The EBNF of a turn, and the parameter that errors name. */
  readonly shapeGrammar: {
    readonly input: { readonly shape: TextShape; readonly param: string };
    readonly output: string;
  };
  /** The tokens as the vocabulary spells them. */
  readonly tokenStrings: {
    readonly input: Int32Array<ArrayBuffer>;
    readonly output: readonly string[];
  };
  readonly detokenize: {
    readonly input: { readonly ids: Int32Array<ArrayBuffer>; readonly skipSpecialTokens: boolean };
    readonly output: string;
  };
}

/** The main thread's knowledge of the tokenizer. */
export interface TextInfo {
  /** The chat template's source; undefined: there is none. */
  readonly chatTemplate: string | undefined;
}

/** A prompt or conversation as tokens. */
export interface EncodedText {
  readonly text: string | undefined;
  readonly tokenIds: Int32Array<ArrayBuffer>;
  readonly cacheSalt: string | undefined;
}

export type TextJobName = keyof TextJobs;

/** A text worker gets a job when it has answered the one before. */
export interface TextMessage<K extends TextJobName = TextJobName> {
  readonly job: K;
  readonly input: TextJobs[K]["input"];
}

export type TextReply = { readonly output: unknown } | { readonly error: EncodedError };
