import { isJsonObject, type JsonObject } from "../../base/json-object.ts";
import { AssistantTurns } from "../../chat/assistant-turns.ts";
import type { ChatMessage } from "../../tokenizer/chat-template.ts";
import { ApiError, invalidValue } from "../errors.ts";

export interface AnthropicConversation {
  readonly messages: readonly ChatMessage[];
  /** The last message is the assistant's, to be continued. */
  readonly isContinued: boolean;
}

/**
 * The messages of a `/v1/messages` request. Results of tools become messages of their own, in their order.
 * @throws ApiError naming the message or block.
 */
export function anthropicMessages(value: unknown): AnthropicConversation {
  if (!Array.isArray(value)) throw invalidValue("messages", "messages must be a list");
  const turns = new AssistantTurns();
  let role: unknown;
  for (const [i, message] of value.entries()) {
    const where = `messages[${i}]`;
    if (!isJsonObject(message)) throw invalidValue(where, `${where} must be an object`);
    role = message["role"];
    if (role !== "user" && role !== "assistant" && role !== "system")
      throw invalidValue(`${where}.role`, `${where}.role must be user, assistant or system`);
    const blocks = blocksOf(message["content"], `${where}.content`);
    if (role === "assistant") for (const block of blocks) addAssistantBlock(block, turns);
    else addBlocks(role, blocks, turns);
  }
  const messages = turns.messages;
  const calls = messages.at(-1)?.["tool_calls"];
  return { messages, isContinued: role === "assistant" && calls === undefined };
}

/** The system's text; empty if there is none. @throws ApiError naming the block. */
export function systemText(system: unknown): string {
  if (system === undefined || system === null) return "";
  return textOf(system, "system");
}

interface Block {
  readonly type: unknown;
  readonly fields: JsonObject;
  readonly where: string;
}

function blocksOf(content: unknown, where: string): readonly Block[] {
  if (typeof content === "string") return [{ type: "text", fields: { text: content }, where }];
  if (!Array.isArray(content))
    throw invalidValue(where, `${where} must be a string or a list of content blocks`);
  return content.map((fields: unknown, i) => {
    const at = `${where}[${i}]`;
    if (!isJsonObject(fields)) throw invalidValue(at, `${at} must be an object`);
    return { type: fields["type"], fields, where: at };
  });
}

function addAssistantBlock({ type, fields, where }: Block, turns: AssistantTurns): void {
  if (type === "text") turns.say(stringOf(fields, "text", where));
  else if (type === "thinking") turns.think(stringOf(fields, "thinking", where));
  else if (type === "tool_use") {
    const { input } = fields;
    if (!isJsonObject(input)) throw invalidValue(`${where}.input`, `${where}.input must be an object`);
    turns.call(stringOf(fields, "id", where), stringOf(fields, "name", where), input);
  } else throw unsupportedBlock(type, where);
}

/** Text of one message is joined; a result of a tool ends it. */
function addBlocks(role: string, blocks: readonly Block[], turns: AssistantTurns): void {
  let texts: string[] = [];
  const flush = () => {
    if (texts.length > 0) turns.add({ role, content: texts.join("\n") });
    texts = [];
  };
  for (const { type, fields, where } of blocks) {
    if (type === "text") texts.push(stringOf(fields, "text", where));
    else if (type === "tool_result" && role === "user") {
      flush();
      const content = textOf(fields["content"] ?? "", `${where}.content`);
      turns.add({ role: "tool", tool_call_id: stringOf(fields, "tool_use_id", where), content });
    } else throw unsupportedBlock(type, where);
  }
  flush();
}

function textOf(content: unknown, where: string): string {
  return blocksOf(content, where)
    .map(({ type, fields, where: at }) => {
      if (type !== "text") throw unsupportedBlock(type, at);
      return stringOf(fields, "text", at);
    })
    .join("\n");
}

function stringOf(fields: JsonObject, name: string, where: string): string {
  const value = fields[name];
  if (typeof value !== "string") throw invalidValue(`${where}.${name}`, `${where}.${name} must be a string`);
  return value;
}

function unsupportedBlock(type: unknown, where: string): ApiError {
  const message = `${where}.type: ${JSON.stringify(type)?.slice(0, 60)} is not supported, this model takes only text`;
  return new ApiError(400, "unsupported_content", message, where);
}
