import type {
  LanguageModelV4Message,
  LanguageModelV4Prompt,
  LanguageModelV4ToolResultOutput,
} from "@ai-sdk/provider";
import { InvalidRequestError } from "../base/errors.ts";
import { AssistantTurns } from "../chat/assistant-turns.ts";
import type { ChatMessage } from "../tokenizer/chat-template.ts";

type MessageOf<Role> = Extract<LanguageModelV4Message, { role: Role }>;

/** The messages of an AI SDK prompt. @throws InvalidRequestError `unsupported_content` for anything but text and calls. */
export function promptMessages(prompt: LanguageModelV4Prompt): readonly ChatMessage[] {
  const turns = new AssistantTurns();
  for (const message of prompt) {
    if (message.role === "system") turns.add({ role: "system", content: message.content });
    else if (message.role === "user") turns.add({ role: "user", content: userText(message) });
    else if (message.role === "assistant") addAssistantParts(message, turns);
    else addResults(message, turns);
  }
  return turns.messages;
}

function userText({ content }: MessageOf<"user">): string {
  return content.map((part) => (part.type === "text" ? part.text : unsupported(part.type))).join("");
}

function addAssistantParts({ content }: MessageOf<"assistant">, turns: AssistantTurns): void {
  for (const part of content) {
    if (part.type === "text") turns.say(part.text);
    else if (part.type === "reasoning") turns.think(part.text);
    else if (part.type === "tool-call")
      turns.call(part.toolCallId, part.toolName, JSON.stringify(part.input ?? {}));
    else unsupported(part.type);
  }
}

function addResults({ content }: MessageOf<"tool">, turns: AssistantTurns): void {
  for (const part of content) {
    // The SDK itself acts on approvals.
    if (part.type !== "tool-result") continue;
    turns.add({
      ...{ role: "tool", tool_call_id: part.toolCallId, name: part.toolName },
      content: resultText(part.output),
    });
  }
}

function resultText(output: LanguageModelV4ToolResultOutput): string {
  switch (output.type) {
    case "text":
    case "error-text":
      return output.value;
    case "json":
    case "error-json":
      return JSON.stringify(output.value);
    case "execution-denied":
      return output.reason ?? "the execution of the tool was denied";
    case "content":
      return output.value.map((part) => (part.type === "text" ? part.text : unsupported(part.type))).join("");
  }
}

function unsupported(type: string): never {
  const message = `prompt: content of type ${type} is not supported, this model takes only text`;
  throw new InvalidRequestError("prompt", message, "unsupported_content");
}
