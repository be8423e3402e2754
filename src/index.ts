/** Octavo's public surface. */

export {
  AsyncLLM,
  type FinishedRequest,
  type GenerationStream,
  type StepReport,
  type SubmitOptions,
  type Tokenization,
} from "./async-llm.ts";
export type { EngineConfig, EngineOptions } from "./base/config.ts";
export {
  ChatTemplateError,
  ConfigError,
  ContextLengthError,
  DeviceError,
  DownloadError,
  EngineDeadError,
  ExitCode,
  InvalidRequestError,
  InvariantError,
  ModelDataError,
  ModelNotFoundError,
  OctavoError,
  RequestFailedError,
  UnsupportedModelError,
} from "./base/errors.ts";
export type {
  CompletionDelta,
  CompletionOutput,
  FinishReason,
  Logprob,
  PositionLogprobs,
  RequestMetrics,
  RequestOutput,
} from "./base/outputs.ts";
export type { OutputKind, SamplingParams } from "./base/sampling-params.ts";
export {
  type ChatGenerateOptions,
  type CreateOptions,
  type GenerateOptions,
  type GenerateProgress,
  LLM,
} from "./llm.ts";
export type { LoadProgress } from "./load-model.ts";
export type { ChatOptions, ChatPrompt, Prompt, TextPrompt, TokensPrompt } from "./prompt-encoder.ts";
export type { ChatMessage } from "./tokenizer/chat-template.ts";
export { Tokenizer } from "./tokenizer/tokenizer.ts";
