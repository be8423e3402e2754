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
export type { EmbedOptions, Pooling } from "./base/embedding.ts";
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
export type { OutputKind, SamplingParams } from "./base/sampling-params.ts";
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
export type { ChatMessage } from "./tokenizer/chat-template.ts";
export type {
  ChatOptions,
  ChatPrompt,
  Prompt,
  TextPrompt,
  TokensPrompt,
} from "./tokenizer/prompt-encoder.ts";
export { Tokenizer } from "./tokenizer/tokenizer.ts";
