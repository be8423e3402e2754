export { AsyncLLM, type SubmitOptions, type Tokenization } from "./async/async-llm.ts";
export type { FinishedRequest, StepReport } from "./async/engine-client.ts";
export type { GenerationStream } from "./async/request-stream.ts";
export type { ChatPrompt, Prompt } from "./prompt-encoder.ts";
