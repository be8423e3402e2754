import { z } from "zod";
import type { JsonObject } from "../../base/json-object.ts";
import type { ChatPrompt, Prompt } from "../../tokenizer/prompt-encoder.ts";
import { invalidValue } from "../errors.ts";
import { chatPrompt, conversationShape } from "./chat.ts";
import { boundedTokenIds } from "./prompt.ts";
import { LIST, MODEL, parseBody, promptShape, type UnknownFields } from "./request-body.ts";

/** Body of `/tokenize`: a prompt, or a conversation. */
export const TokenizeBody = z.object({
  ...promptShape,
  ...conversationShape,
  prompt: z.string().nullish(),
  return_token_strs: z.boolean().nullish(),
});

/** Body of `/detokenize`. */
export const DetokenizeBody = z.object({
  model: MODEL,
  tokens: LIST,
  skip_special_tokens: z.boolean().nullish().meta({ description: "Default false." }),
});

export interface TokenizeRequest {
  readonly body: Omit<z.infer<typeof TokenizeBody>, keyof typeof conversationShape | "prompt">;
  readonly prompt: Prompt | ChatPrompt;
}

/** Checks a body of `/tokenize`. @throws ApiError naming the field. */
export function parseTokenize(json: JsonObject, onUnknown: UnknownFields): TokenizeRequest {
  const body = parseBody(TokenizeBody, json, onUnknown);
  const { model, add_special_tokens, return_token_strs } = body;
  const isChat = body.messages !== undefined && body.messages !== null;
  if (isChat === (typeof body.prompt === "string"))
    throw invalidValue("prompt", "give either prompt or messages");
  const prompt = isChat ? chatPrompt(body) : body.prompt!;
  return { body: { model, add_special_tokens, return_token_strs }, prompt };
}

export interface DetokenizeRequest {
  readonly model: string | null | undefined;
  readonly tokens: readonly number[];
  readonly skipSpecialTokens: boolean;
}

/** Checks a body of `/detokenize`. @throws ApiError naming the field. */
export function parseDetokenize(json: JsonObject, onUnknown: UnknownFields): DetokenizeRequest {
  const { model, tokens, skip_special_tokens } = parseBody(DetokenizeBody, json, onUnknown);
  return {
    model,
    tokens: boundedTokenIds(tokens, "tokens"),
    skipSpecialTokens: skip_special_tokens ?? false,
  };
}
