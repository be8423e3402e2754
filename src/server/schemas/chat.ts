import { z } from "zod";
import { isJsonObject, type JsonObject } from "../../base/json-object.ts";
import type { SamplingParams } from "../../base/sampling-params.ts";
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

const flag = z.boolean().nullish();

/** The fields that make a prompt of a conversation; `/tokenize` takes them too. */
export const conversationShape = {
  messages: z.unknown().optional().meta(MESSAGES_DOCUMENT),
  add_generation_prompt: flag.meta({ description: "Default true, or false with continue_final_message." }),
  continue_final_message: flag,
  chat_template_kwargs: OBJECT.nullish(),
  documents: LIST.nullish().meta({ description: "Handed to the chat template." }),
  tools: LIST.refine((tools) => tools.every(isJsonObject), "must be a list of objects").nullish(),
};

/** Body of `/v1/chat/completions`. */
export const ChatBody = z.object({
  ...generationShape,
  ...conversationShape,
  max_completion_tokens: z.number().nullish().meta({ description: "The same as max_tokens." }),
  logprobs: flag,
  top_logprobs: z.number().nullish(),
  tool_choice: z.unknown().optional().meta({ description: 'Only "none" with tools.' }),
});
export type ChatBody = z.infer<typeof ChatBody>;
export type ConversationBody = Partial<z.infer<z.ZodObject<typeof conversationShape>>>;

export interface ChatRequest {
  readonly body: Omit<ChatBody, keyof typeof conversationShape> &
    Pick<ChatBody, "add_generation_prompt" | "continue_final_message">;
  readonly prompt: ChatPrompt;
  readonly sampling: SamplingParams;
}

/**
 * Checks a body of `/v1/chat/completions`.
 * @throws ApiError naming the field.
 */
export function parseChat(json: JsonObject, onUnknown: UnknownFields): ChatRequest {
  const body = parseBody(ChatBody, json, onUnknown);
  checkGeneration(body);
  checkTools(body);
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
  const { messages, chat_template_kwargs, documents, tools, ...rest } = body;
  const prompt = chatPrompt({ ...rest, messages, chat_template_kwargs, documents, tools });
  return { body: rest, prompt, sampling };
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
  if (body.tools?.length === 0) throw invalidValue("tools", "tools must not be empty");
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

/** Refuses tools that the model could call: without a parser of tool calls they can only be shown to it. */
function checkTools({ tools, tool_choice: choice }: ChatBody): void {
  const given = choice !== undefined && choice !== null;
  if (!tools && given && choice !== "none") throw invalidValue("tool_choice", "tool_choice needs tools");
  if (!tools || tools.length === 0 || choice === "none") return;
  const [field, value] = given ? ["tool_choice", JSON.stringify(choice)] : ["tools", "tool_choice auto"];
  throw unsupported(
    field,
    `${field}: ${value} needs --enable-auto-tool-choice, which is not supported yet; tool_choice "none" is`,
  );
}
