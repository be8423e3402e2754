import type { SubmittedRequest } from "../../base/outputs.ts";
import type { TokenTable } from "../../tokenizer/token-table.ts";
import type { ChatRequest } from "../schemas/chat.ts";
import type { Chunk } from "./chunks.ts";
import { type JsonList, joined } from "./json-parts.ts";
import { ChatLogprobs, promptLogprobs } from "./logprobs.ts";
import {
  documentOf,
  fieldsOf,
  type Parts,
  type ReplyFormat,
  type ReplyNames,
  replyHead,
} from "./reply-format.ts";
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
  text: string;
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

/** The replies of `/v1/chat/completions`. */
export class ChatFormat implements ReplyFormat<PromptPart> {
  readonly #head: string;
  readonly #spelling: TokenSpelling;
  readonly #choices: Choice[] = [];

  constructor(
    private readonly body: ChatRequest["body"],
    names: ReplyNames,
    tokens: TokenTable,
    private readonly speaker: Speaker,
  ) {
    this.#head = replyHead("chatcmpl", body.stream ? "chat.completion.chunk" : "chat.completion", names);
    this.#spelling = new TokenSpelling(tokens, body.return_tokens_as_token_ids === true);
  }

  async prompt({ promptLogprobs: positions }: SubmittedRequest): Promise<PromptPart> {
    return { scores: positions && (await promptLogprobs(positions, this.#spelling)) };
  }

  events(chunk: Chunk<PromptPart>, usage: Usage | undefined): readonly Parts[] {
    const choice = this.#open(chunk);
    this.#extend(choice, chunk);
    const delta = documentOf(this.#head, [this.#choice(choice, "delta", { content: choice.text })], {
      usage,
    });
    if (!chunk.prompt) return [delta];
    const { choice: index, request } = chunk;
    const opening = { role: this.speaker.role, content: "" };
    const begun = JSON.stringify({ index, delta: opening, logprobs: null, finish_reason: null });
    const prompt = this.body.return_token_ids ? { prompt_token_ids: request.promptTokenIds } : {};
    return [documentOf(this.#head, [[begun]], { ...prompt, usage }), delta];
  }

  usageEvent(usage: Usage): Parts {
    return documentOf(this.#head, [], { usage });
  }

  add(chunk: Chunk<PromptPart>): void {
    this.#choices[chunk.choice] ??= this.#open(chunk);
    this.#extend(this.#choices[chunk.choice]!, chunk);
  }

  document(usage: Usage): Parts {
    const { prompt, request } = this.#choices[0]!.first;
    const { role } = this.speaker;
    const choices = this.#choices.map((choice) =>
      this.#choice(choice, "message", { role, content: choice.text, refusal: null }),
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
    const text = first.prompt ? this.speaker.echoed : "";
    return { first, last: first, text, tokenIds: [], logprobs };
  }

  #extend(choice: Choice, chunk: Chunk<PromptPart>): void {
    choice.text += chunk.text;
    for (const id of chunk.tokenIds) choice.tokenIds.push(id);
    for (const token of chunk.scores ?? []) choice.logprobs?.add(token);
    choice.last = chunk;
  }

  *#choice(
    { first, last, tokenIds, logprobs }: Choice,
    field: "delta" | "message",
    content: object,
  ): Generator<string, void, undefined> {
    yield `{"index":${first.choice},"${field}":${JSON.stringify(content)},"logprobs":`;
    if (logprobs) yield* logprobs.text();
    else yield "null";
    const { finishReason, stopReason } = last;
    yield fieldsOf({
      finish_reason: finishReason,
      stop_reason: finishReason === null ? undefined : stopReason,
      token_ids: this.body.return_token_ids ? tokenIds : undefined,
    });
    yield "}";
  }
}
