import type { Turn } from "../../chat/turn.ts";
import type { CallDelta, TurnDelta } from "../../formats/format.ts";
import type { ReasoningField } from "../options.ts";
import type { Chunk } from "./chunks.ts";

/** The field or fields in which a reply has thoughts; undefined: it leaves them out. */
export type ReasoningOutput = ReasoningField | undefined;

/** The message of one choice, in chunks: what its model says, thinks and calls. */
export class ChatTurn {
  content: string;
  reasoning = "";
  calls: CallDelta[] = [];

  /**
   * @param echoed the text that it begins with.
   * @param endsWithCalls calls are the reason that it ended.
   */
  constructor(
    private readonly turn: Turn,
    private readonly thoughts: ReasoningOutput,
    echoed: string,
    private readonly endsWithCalls: boolean,
  ) {
    this.content = echoed;
  }

  get reasoningTokens(): number | undefined {
    return this.turn.reasoningTokens;
  }

  /** The reason that it ended; null while it has not. */
  get finishReason(): string | null {
    const { finishReason } = this.turn;
    return finishReason === "tool_calls" && !this.endsWithCalls ? "stop" : finishReason;
  }

  /** Adds a chunk to the message. */
  add(chunk: Chunk<unknown>): void {
    for (const delta of this.turn.push(chunk)) this.#append(delta);
  }

  /** The fields of a message of what was added since the last time; undefined if there are none. */
  takeDelta(): object | undefined {
    const { content, reasoning, calls } = this;
    this.content = "";
    this.reasoning = "";
    this.calls = [];
    if (content === "" && reasoning === "" && calls.length === 0) return undefined;
    return {
      ...this.#reasoningFields(reasoning),
      ...(content !== "" && { content }),
      ...(calls.length > 0 && {
        tool_calls: calls.map((call) => ({ index: call.index, ...callFields(call) })),
      }),
    };
  }

  /** The whole message, but for its role. */
  message(): object {
    const { content, reasoning, calls, turn } = this;
    return {
      content: content === "" && turn.isRead && (calls.length > 0 || reasoning !== "") ? null : content,
      refusal: null,
      ...this.#reasoningFields(reasoning),
      ...(calls.length > 0 && { tool_calls: calls.map(callFields) }),
    };
  }

  #append({ content, reasoning, calls }: TurnDelta): void {
    this.content += content;
    if (this.thoughts) this.reasoning += reasoning;
    for (const call of calls) {
      const last = this.calls.at(-1);
      if (last?.index === call.index) last.arguments += call.arguments;
      else this.calls.push({ ...call });
    }
  }

  #reasoningFields(reasoning: string): object {
    if (reasoning === "") return {};
    return {
      ...(this.thoughts !== "reasoning_content" && { reasoning }),
      ...(this.thoughts !== "reasoning" && { reasoning_content: reasoning }),
    };
  }
}

function callFields({ id, name, arguments: text }: CallDelta): object {
  return {
    ...(id !== undefined && { id, type: "function" }),
    function: { ...(name !== undefined && { name }), arguments: text },
  };
}
