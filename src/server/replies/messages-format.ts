import { type PartStep, type TurnPart, TurnParts } from "../../chat/turn-parts.ts";
import type { TurnPlan } from "../../chat/turn-plan.ts";
import { anthropicError } from "../anthropic-errors.ts";
import type { ApiError } from "../errors.ts";
import type { Chunk } from "./chunks.ts";
import type { Parts, ReplyFormat, ReplyNames } from "./reply-format.ts";
import { event } from "./sse.ts";
import type { Usage } from "./usage.ts";

/** The replies of `/v1/messages`. */
export class MessagesFormat implements ReplyFormat<true> {
  #parts: TurnParts | undefined;
  #stopSequence: string | null = null;

  /** @param openReader opens a reader of the turn; undefined: all text is said. */
  constructor(
    private readonly names: ReplyNames,
    private readonly openReader: TurnPlan["open"] | undefined,
  ) {}

  get reasoningTokens(): number | undefined {
    return this.#parts?.reasoningTokens;
  }

  async prompt(): Promise<true> {
    return true;
  }

  opening(usage: () => Usage): readonly Parts[] {
    return [named("message_start", { message: this.#message(usage()) })];
  }

  events(chunk: Chunk<true>): readonly Parts[] {
    return this.#push(chunk).map(stepEvent);
  }

  closing(usage: () => Usage): readonly Parts[] {
    const delta = { stop_reason: this.#stopReason, stop_sequence: this.#stopSequence };
    return [named("message_delta", { delta, usage: usageOf(usage()) }), named("message_stop", {})];
  }

  failure(told: ApiError): Parts {
    return event([JSON.stringify(anthropicError(told))], "error");
  }

  add(chunk: Chunk<true>): void {
    this.#push(chunk);
  }

  document(usage: Usage): Parts {
    return [JSON.stringify(this.#message(usage))];
  }

  #push(chunk: Chunk<true>): readonly PartStep[] {
    this.#parts ??= new TurnParts(this.openReader?.(chunk.request));
    if (typeof chunk.stopReason === "string") this.#stopSequence = chunk.stopReason;
    return this.#parts.push(chunk);
  }

  #message(usage: Usage): object {
    const { suffix, model } = this.names;
    return {
      ...{ id: `msg_${suffix}`, type: "message", role: "assistant", model },
      content: this.#parts?.parts.map((part) => block(part, part.text)) ?? [],
      ...{ stop_reason: this.#stopReason, stop_sequence: this.#stopSequence, usage: usageOf(usage) },
    };
  }

  get #stopReason(): string | null {
    const reason = this.#parts?.finishReason ?? null;
    if (this.#stopSequence !== null) return "stop_sequence";
    if (reason === "length") return "max_tokens";
    if (reason === "tool_calls") return "tool_use";
    return reason === null ? null : "end_turn";
  }
}

function stepEvent({ step, part, text }: PartStep): Parts {
  const { index } = part;
  if (step === "begin") return named("content_block_start", { index, content_block: block(part, "") });
  if (step === "end") return named("content_block_stop", { index });
  return named("content_block_delta", { index, delta: DELTAS[part.kind](text) });
}

const DELTAS: Readonly<Record<TurnPart["kind"], (text: string) => object>> = {
  thoughts: (thinking) => ({ type: "thinking_delta", thinking }),
  text: (text) => ({ type: "text_delta", text }),
  call: (partial_json) => ({ type: "input_json_delta", partial_json }),
};

/** The block of a part of which so much has come. A thought is signed by nobody. */
function block({ kind, callId, name }: TurnPart, text: string): object {
  if (kind === "thoughts") return { type: "thinking", thinking: text, signature: "" };
  if (kind === "text") return { type: "text", text, citations: null };
  return { type: "tool_use", id: callId, name, input: objectOf(text) };
}

/** The arguments of a call; those that a limit has cut short are no JSON, and none are delivered. */
function objectOf(text: string): unknown {
  try {
    return JSON.parse(text || "{}");
  } catch {
    return {};
  }
}

function usageOf(usage: Usage): object {
  const reasoning = usage.completion_tokens_details?.reasoning_tokens;
  const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
  return {
    input_tokens: usage.prompt_tokens - cached,
    ...{ cache_creation_input_tokens: 0, cache_read_input_tokens: cached },
    output_tokens: usage.completion_tokens,
    ...(reasoning !== undefined && { output_tokens_details: { thinking_tokens: reasoning } }),
  };
}

function named(type: string, fields: object): Parts {
  return event([JSON.stringify({ type, ...fields })], type);
}
