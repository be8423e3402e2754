import type { SubmittedRequest } from "../../base/outputs.ts";
import type { TokenTable } from "../../tokenizer/token-table.ts";
import type { CompletionsRequest } from "../schemas/completions.ts";
import type { Chunk } from "./chunks.ts";
import { fill, type JsonList, joined } from "./json-parts.ts";
import { CompletionLogprobs, promptLogprobs, type ScoredToken } from "./logprobs.ts";
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
import { codePoints, GivenTextOffsets, TextOffsets } from "./text-offsets.ts";
import { TokenSpelling } from "./token-spelling.ts";
import type { Usage } from "./usage.ts";

/** The part of their prompt that the choices of a completion repeat. */
interface PromptPart {
  /** The echoed text. */
  readonly text: string;
  /** Of the echoed tokens, if they were asked for. */
  readonly logprobs: CompletionLogprobs | undefined;
  /** `prompt_logprobs`, if they were asked for. */
  readonly scores: JsonList | undefined;
}

/** A choice as far as its chunks have come. */
interface Choice {
  readonly first: Chunk<PromptPart>;
  text: string;
  readonly tokenIds: number[];
  readonly logprobs: CompletionLogprobs | undefined;
  last: Chunk<PromptPart>;
}

type Body = CompletionsRequest["body"] & { readonly prompt_logprobs?: unknown };

/** The replies of `/v1/completions`. */
export class CompletionFormat implements ReplyFormat<PromptPart> {
  readonly #body: Body;
  readonly #skipsSpecial: boolean;
  readonly #head: string;
  readonly #spelling: TokenSpelling;
  readonly #offsets = new Map<number, TextOffsets>();
  /** Code points of the text sent so far, by choice. */
  readonly #lengths = new Map<number, number>();
  readonly #choices: Choice[] = [];

  /** @param echo gives the text of a prompt; undefined: prompts are not echoed. */
  constructor(
    { body, sampling }: CompletionsRequest,
    names: ReplyNames,
    private readonly tokens: TokenTable,
    private readonly echo: ((request: SubmittedRequest) => Promise<string>) | undefined,
  ) {
    this.#body = body;
    this.#skipsSpecial = sampling.skipSpecialTokens !== false;
    this.#head = replyHead("cmpl", "text_completion", names);
    this.#spelling = new TokenSpelling(tokens, body.return_tokens_as_token_ids === true);
  }

  async prompt(request: SubmittedRequest): Promise<PromptPart> {
    const { promptLogprobs: positions, sampling } = request;
    const text = (await this.echo?.(request)) ?? "";
    const isAsked = this.#body.prompt_logprobs !== null && this.#body.prompt_logprobs !== undefined;
    return {
      text,
      logprobs:
        this.echo && positions && sampling.logprobs !== undefined
          ? await this.#echoed(request, text)
          : undefined,
      scores: isAsked && positions ? await promptLogprobs(positions, this.#spelling) : undefined,
    };
  }

  events(chunk: Chunk<PromptPart>, usageSoFar: () => Usage): readonly Parts[] {
    const usage = continuousUsage(this.#body, usageSoFar);
    const choice = this.#open(chunk);
    this.#extend(choice, chunk);
    return [event(documentOf(this.#head, [this.#choice(choice)], { usage: usage?.() }))];
  }

  closing(usage: () => Usage): readonly Parts[] {
    return closingEvents(this.#body, () => documentOf(this.#head, [], { usage: usage() }));
  }

  add(chunk: Chunk<PromptPart>): void {
    this.#choices[chunk.choice] ??= this.#open(chunk);
    this.#extend(this.#choices[chunk.choice]!, chunk);
  }

  document(usage: Usage): Parts {
    return documentOf(
      this.#head,
      this.#choices.map((choice) => this.#choice(choice)),
      { usage },
    );
  }

  #open(first: Chunk<PromptPart>): Choice {
    const logprobs = first.scores && new CompletionLogprobs(this.#spelling);
    return { first, last: first, text: "", tokenIds: [], logprobs };
  }

  #extend(choice: Choice, chunk: Chunk<PromptPart>): void {
    choice.text += chunk.text;
    for (const id of chunk.tokenIds) choice.tokenIds.push(id);
    choice.last = chunk;
    if (!chunk.scores || !choice.logprobs) return;
    const length =
      (this.#lengths.get(chunk.choice) ?? 0) + codePoints((chunk.prompt?.text ?? "") + chunk.text);
    this.#lengths.set(chunk.choice, length);
    const offsets = this.#offsetsOf(chunk);
    // A stop string cuts the text short of its tokens.
    const most = chunk.finishReason === null ? Number.POSITIVE_INFINITY : length;
    for (const token of chunk.scores) choice.logprobs.add(token, Math.min(offsets.next(token.id), most));
  }

  #offsetsOf({ choice, prompt }: Chunk<PromptPart>): TextOffsets {
    let offsets = this.#offsets.get(choice);
    if (!offsets) {
      offsets = new TextOffsets(this.tokens, codePoints(prompt?.text ?? ""), this.#skipsSpecial);
      this.#offsets.set(choice, offsets);
    }
    return offsets;
  }

  async #echoed({ promptTokenIds, promptLogprobs: positions }: SubmittedRequest, text: string) {
    const logprobs = new CompletionLogprobs(this.#spelling);
    const offsets = new GivenTextOffsets(this.tokens, text);
    const scored = promptTokenIds.map((id, i): ScoredToken => ({ id, position: positions![i]! }));
    await fill(scored, (token) => logprobs.add(token, offsets.next(token.id)));
    return logprobs;
  }

  *#choice({ first, last, text, tokenIds, logprobs }: Choice): Generator<string, void, undefined> {
    const { choice, prompt, request } = first;
    yield `{"index":${choice},"text":${JSON.stringify((prompt?.text ?? "") + text)},"logprobs":`;
    if (logprobs) yield* CompletionLogprobs.text(prompt?.logprobs ? [prompt.logprobs, logprobs] : [logprobs]);
    else yield "null";
    yield fieldsOf({ finish_reason: last.finishReason, stop_reason: last.stopReason });
    if (this.#body.return_token_ids) {
      yield fieldsOf({ token_ids: tokenIds });
      if (prompt) yield fieldsOf({ prompt_token_ids: request.promptTokenIds });
    }
    if (prompt?.scores) {
      yield ',"prompt_logprobs":';
      yield* joined([prompt.scores]);
    }
    yield "}";
  }
}
