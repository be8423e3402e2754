import { messageOf } from "../../base/errors.ts";
import { isJsonObject } from "../../base/json-object.ts";
import type { ChatMessage, TextPart } from "../../tokenizer/chat-template.ts";
import { ApiError, invalidValue } from "../errors.ts";

const ROLES: ReadonlySet<unknown> = new Set(["system", "developer", "user", "assistant", "tool"]);

/** JSON schema of `messages`, for the OpenAPI document; `parseMessages` does the checking, with a code for each mistake. */
export const MESSAGES_DOCUMENT = {
  description: "The conversation. Further fields of a message reach the chat template.",
  type: "array",
  minItems: 1,
  items: {
    type: "object",
    required: ["role"],
    properties: {
      role: { enum: [...ROLES] },
      content: {
        anyOf: [
          { type: "string" },
          { type: "null" },
          {
            type: "array",
            items: {
              type: "object",
              required: ["type", "text"],
              properties: { type: { const: "text" }, text: { type: "string" } },
            },
          },
        ],
      },
    },
  },
};

/**
 * A conversation as templates take it: a developer's message becomes the system's, which is what it stands for.
 * @throws ApiError `empty_prompt`, `unsupported_content`, or `invalid_value`, naming the message.
 */
export function parseMessages(value: unknown): readonly ChatMessage[] {
  if (!Array.isArray(value)) throw invalidValue("messages", "messages must be a list");
  if (value.length === 0) throw invalidValue("messages", "the conversation has no messages", "empty_prompt");
  return value.map((message, i) => parseMessage(message, `messages[${i}]`));
}

function parseMessage(message: unknown, where: string): ChatMessage {
  if (!isJsonObject(message)) throw invalidValue(where, `${where} must be an object`);
  const { role, content } = message;
  if (!ROLES.has(role))
    throw invalidValue(`${where}.role`, `${where}.role must be one of ${[...ROLES].join(", ")}`);
  if ((content === undefined || content === null) && role !== "assistant")
    throw invalidValue(`${where}.content`, `${where}.content is missing`);
  if (role === "assistant") checkToolCalls(message["tool_calls"], `${where}.tool_calls`);
  return {
    ...message,
    role: role === "developer" ? "system" : (role as string),
    content: parseContent(content, `${where}.content`),
  };
}

/** @throws ApiError naming what no template could print. */
function checkToolCalls(calls: unknown, where: string): void {
  if (calls === undefined || calls === null) return;
  if (!Array.isArray(calls)) throw invalidValue(where, `${where} must be a list`);
  for (const [i, call] of calls.entries()) {
    const path = `${where}[${i}].function`;
    const called: unknown = isJsonObject(call) ? call["function"] : undefined;
    if (!isJsonObject(called)) throw invalidValue(path, `${path} must be an object`);
    if (typeof called["name"] !== "string")
      throw invalidValue(`${path}.name`, `${path}.name must be a string`);
    checkArguments(called["arguments"], `${path}.arguments`);
  }
}

function checkArguments(value: unknown, where: string): void {
  if (value === undefined || value === null || isJsonObject(value)) return;
  if (typeof value !== "string") throw invalidValue(where, `${where} must be JSON text`);
  try {
    JSON.parse(value || "{}");
  } catch (error) {
    throw invalidValue(where, `${where} is no JSON: ${messageOf(error)}`);
  }
}

function parseContent(content: unknown, where: string): string | readonly TextPart[] | null {
  if (content === undefined || content === null) return null;
  if (typeof content === "string") return content;
  if (!Array.isArray(content))
    throw invalidValue(where, `${where} must be a string or a list of content parts`);
  return content.map((part: unknown, i) => {
    const { type, text } = (part ?? {}) as Record<string, unknown>;
    if (type === "text" && typeof text === "string") return { type, text };
    const at = `${where}[${i}]`;
    if (typeof type !== "string" || type === "text")
      throw invalidValue(at, `${at} must have a type, and a text if that is its type`);
    throw new ApiError(400, "unsupported_content", `${at}: this model takes only text parts`, at);
  });
}
