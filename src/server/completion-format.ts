import type { Chunk } from "./chunks.ts";
import { byId, byText, completionLogprobs, promptLogprobs, type TokenNames } from "./logprobs.ts";
import { type ReplyFormat, type ReplyHead, type ReplyNames, replyHead } from "./reply-format.ts";
import type { CompletionsBody } from "./schemas/completions.ts";
import type { Usage } from "./usage.ts";

type Body = Omit<CompletionsBody, "prompt"> & { readonly prompt_logprobs?: unknown };

/** The replies of `/v1/completions`. */
export class CompletionFormat implements ReplyFormat {
  readonly #body: Body;
  readonly #head: ReplyHead;
  readonly #name: TokenNames;
  /** Characters of the tokens sent so far, by choice. */
  readonly #offsets = new Map<number, number>();

  constructor(body: Body, names: ReplyNames) {
    this.#body = body;
    this.#head = replyHead("cmpl", "text_completion", names);
    this.#name = body.return_tokens_as_token_ids ? byId : byText;
  }

  events(chunk: Chunk): readonly object[] {
    return [{ ...this.#head, choices: [this.#choice(chunk)] }];
  }

  usageEvent(usage: Usage): object {
    return { ...this.#head, choices: [], usage };
  }

  document(choices: readonly Chunk[], usage: Usage): object {
    return { ...this.#head, choices: choices.map((choice) => this.#choice(choice)), usage };
  }

  #choice(chunk: Chunk): object {
    const { request, first } = chunk;
    const { prompt_logprobs: asked } = this.#body;
    const scored = asked === null || asked === undefined ? undefined : request.promptLogprobs;
    return {
      index: chunk.choice,
      text: chunk.text,
      logprobs: this.#logprobs(chunk),
      finish_reason: chunk.finishReason,
      stop_reason: chunk.stopReason,
      ...(this.#body.return_token_ids && { token_ids: chunk.tokenIds }),
      ...(this.#body.return_token_ids && first && { prompt_token_ids: request.promptTokenIds }),
      ...(scored && { prompt_logprobs: promptLogprobs(scored, this.#name) }),
    };
  }

  #logprobs({ choice, scores }: Chunk): object | null {
    if (!scores) return null;
    const start = this.#offsets.get(choice) ?? 0;
    this.#offsets.set(
      choice,
      scores.reduce((end, { text }) => end + text.length, start),
    );
    return completionLogprobs(scores, start, this.#name);
  }
}
