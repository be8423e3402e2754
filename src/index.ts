/** Octavo's public surface. */

export {
  type AsyncCreateOptions,
  AsyncLLM,
  type SubmitOptions,
  type Tokenization,
} from "./async/async-llm.ts";
export type { StepReport } from "./async/engine-client.ts";
export type { Replica } from "./async/replica-set.ts";
export type { EngineConfig, EngineOptions } from "./base/config.ts";
export type { DeviceName } from "./base/device-name.ts";
export type { FloatDType } from "./base/dtype.ts";
export type { EmbedOptions, Pooling } from "./base/embedding.ts";
export type { EngineStats } from "./base/engine-stats.ts";
export type { EngineView } from "./base/engine-view.ts";
export {
  ChatTemplateError,
  ConfigError,
  ContextLengthError,
  DeviceError,
  DownloadError,
  EngineDeadError,
  ExitCode,
  GrammarTooComplexError,
  InvalidRequestError,
  InvariantError,
  ModelDataError,
  ModelNotFoundError,
  OctavoError,
  ReplicaDeadError,
  RequestFailedError,
  SchemaError,
  UnsupportedModelError,
} from "./base/errors.ts";
export type {
  CompletionDelta,
  CompletionOutput,
  FinishedRequest,
  FinishReason,
  GenerationStream,
  Logprob,
  PositionLogprobs,
  RequestMetrics,
  RequestOutput,
  SubmittedRequest,
} from "./base/outputs.ts";
export type { OutputKind, ResolvedSamplingParams, SamplingParams } from "./base/sampling-params.ts";
export type { ResponseFormat, StructuredOutputs } from "./base/structured-outputs.ts";
export type { WeightSummary } from "./base/weight-summary.ts";
export {
  type ChatGenerateOptions,
  type CreateOptions,
  type GenerateOptions,
  type GenerateProgress,
  LLM,
} from "./llm/llm.ts";
export type { LoadProgress } from "./llm/load-model.ts";
export type { ChatMessage, TextPart } from "./tokenizer/chat-template.ts";
export type {
  ChatOptions,
  ChatPrompt,
  Prompt,
  TextPrompt,
  TokensPrompt,
} from "./tokenizer/prompt-encoder.ts";
export type { TokenTable } from "./tokenizer/token-table.ts";
export { type DecodeOptions, type EncodeOptions, Tokenizer } from "./tokenizer/tokenizer.ts";
