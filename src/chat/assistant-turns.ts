import type { ChatMessage } from "../tokenizer/chat-template.ts";
import type { TurnPart } from "./turn-parts.ts";

type Call = {
  readonly id: string;
  readonly type: "function";
  readonly function: { readonly name: string; readonly arguments: unknown };
};

/** A message of the assistant's that is being put together. */
interface Draft {
  thoughts: string;
  content: string | null;
  readonly calls: Call[];
}

/** Puts a conversation together in which the assistant's messages come in pieces: thoughts, text, calls. */
export class AssistantTurns {
  readonly #messages: ChatMessage[] = [];
  #draft: Draft | undefined;

  /** The conversation so far. */
  get messages(): readonly ChatMessage[] {
    this.#close();
    return this.#messages;
  }

  think(thoughts: string): void {
    if (this.#draft && (this.#draft.content !== null || this.#draft.calls.length > 0)) this.#close();
    this.#open().thoughts += thoughts;
  }

  say(text: string): void {
    if (this.#draft && this.#draft.calls.length > 0) this.#close();
    const draft = this.#open();
    draft.content = (draft.content ?? "") + text;
  }

  /** @param values JSON text, or an object. */
  call(id: string, name: string, values: unknown): void {
    this.#open().calls.push({ id, type: "function", function: { name, arguments: values } });
  }

  /** Adds a message of somebody else's. */
  add(message: ChatMessage): void {
    this.#close();
    this.#messages.push(message);
  }

  /** Ends the assistant's message, if there is one. */
  #close(): void {
    const draft = this.#draft;
    this.#draft = undefined;
    if (!draft) return;
    const { thoughts, content, calls } = draft;
    this.#messages.push({
      ...{ role: "assistant", content },
      ...(thoughts !== "" && { reasoning_content: thoughts }),
      ...(calls.length > 0 && { tool_calls: calls }),
    });
  }

  #open(): Draft {
    this.#draft ??= { thoughts: "", content: null, calls: [] };
    return this.#draft;
  }
}

/** The messages that the parts of a reply are. */
export function assistantMessages(
  parts: readonly Pick<TurnPart, "kind" | "text" | "callId" | "name">[],
): readonly ChatMessage[] {
  const turns = new AssistantTurns();
  for (const { kind, text, callId, name } of parts) {
    if (kind === "thoughts") turns.think(text);
    else if (kind === "text") turns.say(text);
    else turns.call(callId, name, text);
  }
  return turns.messages;
}
