import type { SubmittedRequest } from "../../base/outputs.ts";
import { Turn } from "../../chat/turn.ts";
import type { TurnPlan } from "../../chat/turn-plan.ts";
import type { TokenTable } from "../../tokenizer/token-table.ts";
import type { ChatRequest } from "../schemas/chat.ts";
import { ChatTurn, type ReasoningOutput } from "./chat-turn.ts";
import type { Chunk } from "./chunks.ts";
import { type JsonList, joined } from "./json-parts.ts";
import { ChatLogprobs, promptLogprobs } from "./logprobs.ts";
import {
  closingEvents,
  continuousUsage,
  documentOf,
  fieldsOf,
  type Parts,
  type ReplyFormat,
  type ReplyNames,
  replyHead,
} from "./reply-format.ts";
import { event } from "./sse.ts";
import { TokenSpelling } from "./token-spelling.ts";
import type { Usage } from "./usage.ts";

/** The part of its conversation that a chat's reply repeats. */
interface PromptPart {
  /** `prompt_logprobs`, if they were asked for. */
  readonly scores: JsonList | undefined;
}

/** A choice as far as its chunks have come. */
interface Choice {
  readonly first: Chunk<PromptPart>;
  readonly turn: ChatTurn;
  readonly tokenIds: number[];
  readonly logprobs: ChatLogprobs | undefined;
  last: Chunk<PromptPart>;
}

/** The speaker of a chat's reply. */
export interface Speaker {
  readonly role: string;
  /** The text that the reply begins with. */
  readonly echoed: string;
}

export interface ChatFormatOptions {
  readonly names: ReplyNames;
  /** The bytes of tokens, if the reply names any. */
  readonly tokens: TokenTable;
  readonly speaker: Speaker;
  readonly thoughts: ReasoningOutput;
  /** Calls are the reason that a reply with calls ended. */
  readonly endsWithCalls: boolean;
  /** Opens a reader of the turn of a choice; undefined: all text is said. */
  readonly openReader: TurnPlan["open"] | undefined;
}

/** The replies of `/v1/chat/completions`. */
export class ChatFormat implements ReplyFormat<PromptPart> {
  readonly #head: string;
  readonly #spelling: TokenSpelling;
  readonly #choices: Choice[] = [];
  readonly #turns: ChatTurn[] = [];

  constructor(
    private readonly body: ChatRequest["body"],
    private readonly options: ChatFormatOptions,
  ) {
    const { names, tokens } = options;
    this.#head = replyHead("chatcmpl", body.stream ? "chat.completion.chunk" : "chat.completion", names);
    this.#spelling = new TokenSpelling(tokens, body.return_tokens_as_token_ids === true);
  }

  get reasoningTokens(): number | undefined {
    if (!this.options.openReader) return undefined;
    return this.#turns.reduce((sum, turn) => sum + (turn?.reasoningTokens ?? 0), 0);
  }

  async prompt({ promptLogprobs: positions }: SubmittedRequest): Promise<PromptPart> {
    return { scores: positions && (await promptLogprobs(positions, this.#spelling)) };
  }

  events(chunk: Chunk<PromptPart>, usageSoFar: () => Usage): readonly Parts[] {
    const usage = continuousUsage(this.body, usageSoFar);
    const choice = this.#open(chunk);
    this.#extend(choice, chunk);
    const events: Parts[] = [];
    if (chunk.prompt) {
      const { choice: index, request } = chunk;
      const opening = { role: this.options.speaker.role, content: "" };
      const begun = JSON.stringify({ index, delta: opening, logprobs: null, finish_reason: null });
      const prompt = this.body.return_token_ids ? { prompt_token_ids: request.promptTokenIds } : {};
      events.push(event(documentOf(this.#head, [[begun]], { ...prompt, usage: usage?.() })));
    }
    const delta = choice.turn.takeDelta();
    const tellsTokens =
      (choice.logprobs !== undefined || this.body.return_token_ids) && chunk.tokenIds.length > 0;
    if (delta || tellsTokens || chunk.finishReason !== null) {
      const part = this.#choice(choice, "delta", delta ?? { content: "" });
      events.push(event(documentOf(this.#head, [part], { usage: usage?.() })));
    }
    return events;
  }

  closing(usage: () => Usage): readonly Parts[] {
    return closingEvents(this.body, () => documentOf(this.#head, [], { usage: usage() }));
  }

  add(chunk: Chunk<PromptPart>): void {
    this.#choices[chunk.choice] ??= this.#open(chunk);
    this.#extend(this.#choices[chunk.choice]!, chunk);
  }

  document(usage: Usage): Parts {
    const { prompt, request } = this.#choices[0]!.first;
    const { role } = this.options.speaker;
    const choices = this.#choices.map((choice) =>
      this.#choice(choice, "message", { role, ...choice.turn.message() }),
    );
    return documentOf(this.#head, choices, { usage }, this.#promptFields(prompt, request));
  }

  *#promptFields(prompt: PromptPart | undefined, { promptTokenIds }: SubmittedRequest): Generator<string> {
    if (prompt?.scores) {
      yield ',"prompt_logprobs":';
      yield* joined([prompt.scores]);
    }
    if (this.body.return_token_ids) yield fieldsOf({ prompt_token_ids: promptTokenIds });
  }

  #open(first: Chunk<PromptPart>): Choice {
    const logprobs = first.scores && new ChatLogprobs(this.#spelling, this.body.top_logprobs ?? 0);
    const { openReader, thoughts, speaker, endsWithCalls } = this.options;
    const open = () => new Turn(openReader?.(first.request));
    this.#turns[first.choice] ??= new ChatTurn(open(), thoughts, speaker.echoed, endsWithCalls);
    return { first, last: first, turn: this.#turns[first.choice]!, tokenIds: [], logprobs };
  }

  #extend(choice: Choice, chunk: Chunk<PromptPart>): void {
    choice.turn.add(chunk);
    for (const id of chunk.tokenIds) choice.tokenIds.push(id);
    for (const token of chunk.scores ?? []) choice.logprobs?.add(token);
    choice.last = chunk;
  }

  *#choice(
    { first, last, turn, tokenIds, logprobs }: Choice,
    field: "delta" | "message",
    content: object,
  ): Generator<string, void, undefined> {
    yield `{"index":${first.choice},"${field}":${JSON.stringify(content)},"logprobs":`;
    if (logprobs) yield* logprobs.text();
    else yield "null";
    const { finishReason, stopReason } = last;
    yield fieldsOf({
      finish_reason: turn.finishReason,
      stop_reason: finishReason === null ? undefined : stopReason,
      token_ids: this.body.return_token_ids ? tokenIds : undefined,
    });
    yield "}";
  }
}
