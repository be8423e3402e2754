import type { Chunk } from "./chunks.ts";
import { byId, byText, chatLogprobs, promptLogprobs, type TokenNames } from "./logprobs.ts";
import { type ReplyFormat, type ReplyHead, type ReplyNames, replyHead } from "./reply-format.ts";
import type { ChatBody } from "./schemas/chat.ts";
import type { Usage } from "./usage.ts";

/** The replies of `/v1/chat/completions`. */
export class ChatFormat implements ReplyFormat {
  readonly #body: ChatBody;
  readonly #head: ReplyHead;
  readonly #name: TokenNames;

  /** @param role of the reply's messages. */
  constructor(
    body: ChatBody,
    names: ReplyNames,
    private readonly role: string,
  ) {
    const object = body.stream ? "chat.completion.chunk" : "chat.completion";
    this.#body = body;
    this.#head = replyHead("chatcmpl", object, names);
    this.#name = body.return_tokens_as_token_ids ? byId : byText;
  }

  events(chunk: Chunk): readonly object[] {
    const delta = { ...this.#head, choices: [this.#choice(chunk, "delta", { content: chunk.text })] };
    if (!chunk.first) return [delta];
    const { choice: index, request } = chunk;
    const opening = { index, delta: { role: this.role, content: "" }, logprobs: null, finish_reason: null };
    const prompt = this.#body.return_token_ids && { prompt_token_ids: request.promptTokenIds };
    return [{ ...this.#head, choices: [opening], ...prompt }, delta];
  }

  usageEvent(usage: Usage): object {
    return { ...this.#head, choices: [], usage };
  }

  document(choices: readonly Chunk[], usage: Usage): object {
    const { promptLogprobs: scored, promptTokenIds } = choices[0]!.request;
    return {
      ...this.#head,
      choices: choices.map((choice) =>
        this.#choice(choice, "message", { role: this.role, content: choice.text, refusal: null }),
      ),
      usage,
      ...(scored && { prompt_logprobs: promptLogprobs(scored, this.#name) }),
      ...(this.#body.return_token_ids && { prompt_token_ids: promptTokenIds }),
    };
  }

  #choice(chunk: Chunk, field: "delta" | "message", content: object): object {
    const { choice, scores, finishReason, stopReason, tokenIds } = chunk;
    return {
      index: choice,
      [field]: content,
      logprobs: scores ? chatLogprobs(scores, this.#body.top_logprobs ?? 0, this.#name) : null,
      finish_reason: finishReason,
      ...(finishReason !== null && { stop_reason: stopReason }),
      ...(this.#body.return_token_ids && { token_ids: tokenIds }),
    };
  }
}
