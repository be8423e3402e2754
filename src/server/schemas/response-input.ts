import { isJsonObject, type JsonObject } from "../../base/json-object.ts";
import { AssistantTurns } from "../../chat/assistant-turns.ts";
import type { ChatMessage } from "../../tokenizer/chat-template.ts";
import { ApiError, invalidValue } from "../errors.ts";

const ROLES: readonly unknown[] = ["user", "system", "developer", "assistant"];
const TEXTS: readonly unknown[] = ["input_text", "output_text", "text", "reasoning_text"];

/** Finds the item of a stored response. @param where the place in the input that refers to it. @throws ApiError */
export type FindItem = (id: string, where: string) => unknown;

/** True if the input refers to items of stored responses. */
export function hasReferences(input: unknown): boolean {
  return (
    Array.isArray(input) && input.some((item) => isJsonObject(item) && typeOf(item) === "item_reference")
  );
}

/**
 * The messages of a `/v1/responses` input. Thoughts, text and calls that follow each other are one message of the
 * assistant's.
 * @param find default: what is referred to is left open, as a text that says nothing
 * @throws ApiError naming the item.
 */
export function inputMessages(input: unknown, find: FindItem = () => OPEN_ITEM): readonly ChatMessage[] {
  if (typeof input === "string") return [{ role: "user", content: input }];
  if (!Array.isArray(input)) throw invalidValue("input", "input must be a string or a list of items");
  const turns = new AssistantTurns();
  for (const [i, item] of input.entries()) addItem(item, `input[${i}]`, turns, find);
  return turns.messages;
}

const OPEN_ITEM = { type: "message", role: "assistant", content: "" };

/** Clients leave out the type of messages and of references. */
function typeOf(item: JsonObject): unknown {
  return item["type"] ?? (item["role"] === undefined && "id" in item ? "item_reference" : "message");
}

function addItem(item: unknown, where: string, turns: AssistantTurns, find: FindItem): void {
  if (!isJsonObject(item)) throw invalidValue(where, `${where} must be an object`);
  const type = typeOf(item);
  switch (type) {
    case "item_reference":
      addItem(find(stringOf(item, "id", where), where), where, turns, find);
      return;
    case "message": {
      const { role } = item;
      if (!ROLES.includes(role))
        throw invalidValue(`${where}.role`, `${where}.role must be one of ${ROLES.join(", ")}`);
      const content = textOf(item["content"], `${where}.content`);
      if (role === "assistant") turns.say(content);
      else turns.add({ role: role === "developer" ? "system" : (role as string), content });
      return;
    }
    case "reasoning": {
      // A summary is all there is of thoughts that another server kept to itself.
      const thoughts = item["content"] ?? item["summary"] ?? [];
      turns.think(textOf(thoughts, `${where}.content`, ["summary_text"]));
      return;
    }
    case "function_call": {
      const [id, name] = [stringOf(item, "call_id", where), stringOf(item, "name", where)];
      turns.call(id, name, argumentsOf(stringOf(item, "arguments", where), `${where}.arguments`));
      return;
    }
    case "function_call_output": {
      const content = textOf(item["output"], `${where}.output`);
      turns.add({ role: "tool", tool_call_id: stringOf(item, "call_id", where), content });
      return;
    }
    default:
      throw new ApiError(400, "unsupported_content", `${where}.type: ${clip(type)} is not supported`, where);
  }
}

/** Text, or parts of it. */
function textOf(content: unknown, where: string, more: readonly unknown[] = []): string {
  if (typeof content === "string") return content;
  if (!Array.isArray(content))
    throw invalidValue(where, `${where} must be a string or a list of content parts`);
  return content
    .map((part: unknown, i) => {
      const { type, text, refusal } = (part ?? {}) as JsonObject;
      if (type === "refusal" && typeof refusal === "string") return refusal;
      if ((TEXTS.includes(type) || more.includes(type)) && typeof text === "string") return text;
      const at = `${where}[${i}]`;
      throw new ApiError(400, "unsupported_content", `${at}: this model takes only text`, at);
    })
    .join("");
}

function stringOf(item: JsonObject, field: string, where: string): string {
  const value = item[field];
  if (typeof value !== "string")
    throw invalidValue(`${where}.${field}`, `${where}.${field} must be a string`);
  return value;
}

function argumentsOf(text: string, where: string): string {
  try {
    JSON.parse(text || "{}");
    return text;
  } catch {
    throw invalidValue(where, `${where} is no JSON`);
  }
}

function clip(type: unknown): string {
  return JSON.stringify(type).slice(0, 60);
}
