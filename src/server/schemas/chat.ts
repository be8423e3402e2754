import { z } from "zod";
import type { JsonObject } from "../../base/json-object.ts";
import type { SamplingParams } from "../../base/sampling-params.ts";
import type { ToolChoice } from "../../chat/tools.ts";
import { thinkingKwargs } from "../../chat/turn-plan.ts";
import type { ChatOptions, ChatPrompt } from "../../tokenizer/prompt-encoder.ts";
import { invalidValue, unsupported } from "../errors.ts";
import { MESSAGES_DOCUMENT, parseMessages } from "./messages.ts";
import {
  checkGeneration,
  generationShape,
  LIST,
  OBJECT,
  parseBody,
  type UnknownFields,
} from "./request-body.ts";
import { samplingParams } from "./sampling.ts";
import { structuredParams } from "./structured.ts";
import { checkTools, parseToolChoice, TOOL_CHOICE_DOCUMENT, TOOLS_DOCUMENT } from "./tools.ts";

const flag = z.boolean().nullish();

export const EFFORT = z.enum(["none", "minimal", "low", "medium", "high", "xhigh"]);

/** The fields that make a prompt of a conversation; `/tokenize` takes them too. */
export const conversationShape = {
  messages: z.unknown().optional().meta(MESSAGES_DOCUMENT),
  add_generation_prompt: flag.meta({ description: "Default true, or false with continue_final_message." }),
  continue_final_message: flag,
  chat_template_kwargs: OBJECT.nullish(),
  documents: LIST.nullish().meta({ description: "Handed to the chat template." }),
  tools: LIST.nullish().meta(TOOLS_DOCUMENT),
};

/** Body of `/v1/chat/completions`. */
export const ChatBody = z.object({
  ...generationShape,
  ...conversationShape,
  max_completion_tokens: z.number().nullish().meta({ description: "The same as max_tokens." }),
  logprobs: flag,
  top_logprobs: z.number().nullish(),
  tool_choice: z.unknown().optional().meta(TOOL_CHOICE_DOCUMENT),
  parallel_tool_calls: flag.meta({ description: "false: a reply has the first call only. Default true." }),
  thinking_token_budget: z
    .number()
    .nullish()
    .meta({ description: "Tokens that the model may think for, from 0. Default as many as it likes." }),
  include_reasoning: flag.meta({ description: "false: a reply has no thoughts. Default true." }),
  reasoning_effort: EFFORT.nullish().meta({
    description: "Handed to the chat template; none: enable_thinking is false.",
  }),
});
export type ChatBody = z.infer<typeof ChatBody>;
export type ConversationBody = Partial<z.infer<z.ZodObject<typeof conversationShape>>>;

export interface ChatRequest {
  readonly body: Omit<ChatBody, keyof typeof conversationShape> &
    Pick<ChatBody, "add_generation_prompt" | "continue_final_message">;
  readonly prompt: ChatPrompt;
  readonly sampling: SamplingParams;
  readonly toolChoice: ToolChoice;
}

/**
 * Checks a body of `/v1/chat/completions`.
 * @throws ApiError naming the field.
 */
export function parseChat(json: JsonObject, onUnknown: UnknownFields): ChatRequest {
  const body = parseBody(ChatBody, json, onUnknown);
  checkGeneration(body);
  const sampling: SamplingParams = { ...samplingParams(body), ...structuredParams(body) };
  const limit = body.max_completion_tokens ?? undefined;
  if (limit !== undefined && sampling.maxTokens !== undefined && limit !== sampling.maxTokens)
    throw invalidValue("max_completion_tokens", "max_tokens and max_completion_tokens differ");
  sampling.maxTokens ??= limit ?? null;
  const top = body.top_logprobs ?? undefined;
  // Clients send 0 for none.
  if (top !== undefined && top !== 0 && !body.logprobs)
    throw invalidValue("top_logprobs", "top_logprobs needs logprobs: true");
  if (body.logprobs) sampling.logprobs = top ?? 0;
  checkReasoning(body, sampling);
  const { messages, chat_template_kwargs, documents, tools, ...rest } = body;
  const kwargs = { ...thinkingKwargs(body.reasoning_effort), ...chat_template_kwargs };
  const prompt = chatPrompt({ ...rest, messages, chat_template_kwargs: kwargs, documents, tools });
  const toolChoice = parseToolChoice(body.tool_choice, tools ?? undefined);
  return { body: rest, prompt, sampling, toolChoice };
}

/** Thoughts that are left out must not come as tokens either. */
function checkReasoning(body: ChatBody, { logprobs }: SamplingParams): void {
  const budget = body.thinking_token_budget ?? 0;
  if (!Number.isInteger(budget) || budget < 0)
    throw invalidValue("thinking_token_budget", "thinking_token_budget must be an integer from 0");
  if (body.include_reasoning !== false) return;
  const field = logprobs !== undefined ? "logprobs" : body.return_token_ids ? "return_token_ids" : undefined;
  if (field) throw invalidValue("include_reasoning", `include_reasoning: false cannot come with ${field}`);
}

/**
 * The prompt of a conversation.
 * @throws ApiError naming the field.
 */
export function chatPrompt(body: ConversationBody): ChatPrompt {
  const kwargs = { ...body.chat_template_kwargs };
  if (Object.hasOwn(kwargs, "chat_template")) {
    const message = "chat_template cannot come with a request; the server's --chat-template sets it";
    throw unsupported("chat_template_kwargs", message, 400);
  }
  if (body.tools) checkTools(body.tools);
  if (body.documents) kwargs["documents"] = body.documents;
  const chat: ChatOptions = {
    chatTemplateKwargs: kwargs,
    ...(body.tools && { tools: body.tools }),
    ...(typeof body.add_generation_prompt === "boolean" && {
      addGenerationPrompt: body.add_generation_prompt,
    }),
    ...(typeof body.continue_final_message === "boolean" && {
      continueFinalMessage: body.continue_final_message,
    }),
  };
  return { messages: parseMessages(body.messages), chat };
}
