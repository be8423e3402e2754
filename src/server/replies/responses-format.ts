import { type PartStep, type TurnPart, TurnParts } from "../../chat/turn-parts.ts";
import type { TurnPlan } from "../../chat/turn-plan.ts";
import type { ApiError } from "../errors.ts";
import type { ResponseDocument } from "../response-store.ts";
import type { ResponsesRequest } from "../schemas/responses.ts";
import type { Chunk } from "./chunks.ts";
import type { Parts, ReplyFormat, ReplyNames } from "./reply-format.ts";
import { event } from "./sse.ts";
import type { Usage } from "./usage.ts";

export interface ResponsesFormatOptions {
  readonly names: ReplyNames;
  /** Opens a reader of the turn; undefined: all text is said. */
  readonly openReader: TurnPlan["open"] | undefined;
  /** Called with a response that has ended as it should, before its last event, and with the parts that it has. */
  readonly onEnd: (response: ResponseDocument, parts: readonly TurnPart[]) => void;
}

type Status = "in_progress" | "completed" | "incomplete" | "failed";

/** The replies of `/v1/responses`. */
export class ResponsesFormat implements ReplyFormat<true> {
  readonly #head: ResponseDocument;
  #parts: TurnParts | undefined;
  #nextEvent = 0;

  constructor(
    body: ResponsesRequest["body"],
    private readonly options: ResponsesFormatOptions,
  ) {
    this.#head = headOf(body, options.names);
  }

  get reasoningTokens(): number | undefined {
    return this.#parts?.reasoningTokens;
  }

  async prompt(): Promise<true> {
    return true;
  }

  opening(): readonly Parts[] {
    return ["response.created", "response.in_progress"].map((type) =>
      this.#event(type, { response: this.#response("in_progress", undefined) }),
    );
  }

  events(chunk: Chunk<true>): readonly Parts[] {
    return this.#push(chunk).flatMap((step) => this.#stepEvents(step));
  }

  closing(usage: () => Usage): readonly Parts[] {
    const response = this.#ended(usage());
    return [this.#event(`response.${response["status"]}`, { response })];
  }

  failure({ code, message }: ApiError): Parts {
    const response = { ...this.#response("failed", undefined), error: { code, message } };
    return this.#event("response.failed", { response });
  }

  add(chunk: Chunk<true>): void {
    this.#push(chunk);
  }

  document(usage: Usage): Parts {
    return [JSON.stringify(this.#ended(usage))];
  }

  #push(chunk: Chunk<true>): readonly PartStep[] {
    this.#parts ??= new TurnParts(this.options.openReader?.(chunk.request));
    return this.#parts.push(chunk);
  }

  #stepEvents({ step, part, text }: PartStep): readonly Parts[] {
    const output_index = part.index;
    const item_id = this.#itemId(part);
    const place = { item_id, output_index, content_index: 0 };
    const isCall = part.kind === "call";
    const kind = part.kind === "text" ? "output_text" : "reasoning_text";
    if (step === "text") {
      if (isCall)
        return [
          this.#event("response.function_call_arguments.delta", { item_id, output_index, delta: text }),
        ];
      return [this.#event(`response.${kind}.delta`, { ...place, delta: text, ...logprobs(part) })];
    }
    if (step === "begin") {
      const item = this.#item({ ...part, text: "" }, "in_progress");
      const added = this.#event("response.output_item.added", {
        output_index,
        item: isCall ? item : { ...item, content: [] },
      });
      if (isCall) return [added];
      const begun = { ...place, part: content({ ...part, text: "" }) };
      return [added, this.#event("response.content_part.added", begun)];
    }
    const item = this.#item(part, this.#isCut(part) ? "incomplete" : "completed");
    const whole = { item_id, output_index, name: part.name, arguments: part.text };
    const ends: readonly Parts[] = isCall
      ? [this.#event("response.function_call_arguments.done", whole)]
      : [
          this.#event(`response.${kind}.done`, { ...place, text: part.text, ...logprobs(part) }),
          this.#event("response.content_part.done", { ...place, part: content(part) }),
        ];
    return [...ends, this.#event("response.output_item.done", { output_index, item })];
  }

  /** To be called in the order of the events, which it numbers. */
  #event(type: string, fields: object): Parts {
    const data = { type, sequence_number: this.#nextEvent++, ...fields };
    return event([JSON.stringify(data)], type);
  }

  /** The response when nothing follows. */
  #ended(usage: Usage): ResponseDocument {
    const isWhole = this.#parts?.finishReason !== "length";
    const response = this.#response(isWhole ? "completed" : "incomplete", usage);
    this.options.onEnd(response, this.#parts?.parts ?? []);
    return response;
  }

  #response(status: Status, usage: Usage | undefined): ResponseDocument {
    const output = this.#parts?.parts.map((part) =>
      this.#item(part, this.#isCut(part) || !part.isDone ? "incomplete" : "completed"),
    );
    return {
      ...this.#head,
      status,
      completed_at: status === "completed" ? Math.floor(Date.now() / 1000) : null,
      incomplete_details: status === "incomplete" ? { reason: "max_output_tokens" } : null,
      output: output ?? [],
      usage: usage ? usageOf(usage) : null,
    };
  }

  /** A limit has cut the part short. */
  #isCut(part: TurnPart): boolean {
    return this.#parts?.finishReason === "length" && part === this.#parts.parts.at(-1);
  }

  #item(part: TurnPart, status: Status): object {
    const { kind, text, callId: call_id, name } = part;
    const id = this.#itemId(part);
    if (kind === "call") return { id, type: "function_call", status, call_id, name, arguments: text };
    if (kind === "thoughts") return { id, type: "reasoning", summary: [], content: [content(part)], status };
    return { id, type: "message", status, role: "assistant", content: [content(part)] };
  }

  #itemId({ kind, index }: TurnPart): string {
    return `${{ thoughts: "rs", text: "msg", call: "fc" }[kind]}_${this.options.names.suffix}_${index}`;
  }
}

function content({ kind, text }: TurnPart): object {
  if (kind === "thoughts") return { type: "reasoning_text", text };
  return { type: "output_text", text, annotations: [], logprobs: [] };
}

function logprobs({ kind }: TurnPart): object {
  return kind === "text" ? { logprobs: [] } : {};
}

/** The fields of a response that do not change while it is made. */
function headOf(body: ResponsesRequest["body"], { suffix, model }: ReplyNames): ResponseDocument {
  const { temperature, top_p } = body as { readonly temperature?: unknown; readonly top_p?: unknown };
  const { effort } = body.reasoning ?? {};
  return {
    ...{ id: `resp_${suffix}`, object: "response", created_at: Math.floor(Date.now() / 1000), model },
    ...{ status: "in_progress", background: false, error: null, incomplete_details: null },
    ...{ instructions: body.instructions ?? null, max_output_tokens: body.max_output_tokens ?? null },
    ...{ previous_response_id: body.previous_response_id ?? null, store: body.store ?? true },
    ...{ parallel_tool_calls: body.parallel_tool_calls ?? true, tool_choice: body.tool_choice ?? "auto" },
    ...{ tools: body.tools ?? [], temperature: temperature ?? null, top_p: top_p ?? null },
    ...{ reasoning: { effort: effort ?? null, summary: null }, truncation: "disabled" },
    ...{ text: { format: body.text?.format ?? { type: "text" } }, metadata: body.metadata ?? {} },
    service_tier: "default",
  };
}

function usageOf(usage: Usage): object {
  return {
    input_tokens: usage.prompt_tokens,
    input_tokens_details: {
      cached_tokens: usage.prompt_tokens_details?.cached_tokens ?? 0,
      cache_write_tokens: 0,
    },
    output_tokens: usage.completion_tokens,
    output_tokens_details: { reasoning_tokens: usage.completion_tokens_details?.reasoning_tokens ?? 0 },
    total_tokens: usage.total_tokens,
  };
}
