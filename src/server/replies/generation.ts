import type { SubmitOptions } from "../../async/async-llm.ts";
import { InvalidRequestError } from "../../base/errors.ts";
import type { GenerationStream, SubmittedRequest } from "../../base/outputs.ts";
import type { SamplingParams } from "../../base/sampling-params.ts";
import type { ChatPrompt, Prompt } from "../../tokenizer/prompt-encoder.ts";
import { TokenTable } from "../../tokenizer/token-table.ts";
import { cacheSalt } from "../auth.ts";
import type { RequestContext, ServerContext } from "../context.ts";
import { type ApiError, invalidValue, toApiError } from "../errors.ts";
import { admitRequest, type RequestLifetime } from "../request-lifetime.ts";
import { type GenerationBody, tokenizeOptions } from "../schemas/request-body.ts";
import { type Chunk, chunksOf } from "./chunks.ts";
import { merged } from "./json-parts.ts";
import type { ReplyFormat } from "./reply-format.ts";
import { checkReplySize, outputBound, type PromptScores } from "./reply-size.ts";
import { replyStream } from "./reply-stream.ts";
import { eventStream, SSE_HEADERS } from "./sse.ts";
import { type Usage, UsageCounter } from "./usage.ts";

/** A body of either completions endpoint, checked and in the engine's terms. */
export interface GenerationRequest {
  readonly body: GenerationBody;
  readonly model: string;
  readonly prompts: readonly (Prompt | ChatPrompt)[];
  readonly sampling: SamplingParams;
  /** Compute each prompt's vector instead of generating. Default none. */
  readonly pooling?: SubmitOptions["pooling"];
  /** Leave out what is generated. Default false. */
  readonly promptOnly?: boolean;
  readonly promptScores: PromptScores;
  /** Limits of the turn that follows a rendered prompt. Default none. */
  readonly limitTurn?: SubmitOptions["limitTurn"];
  /** The endpoint's names of the engine's parameters, where they differ from the usual. */
  readonly names?: Readonly<Record<string, string>>;
}

/** The tokens' bytes for a reply that names tokens; a table of none for another, which needs no text worker then. */
export async function tokensFor(
  { llm }: ServerContext,
  { logprobs, promptLogprobs }: SamplingParams,
): Promise<TokenTable> {
  const namesTokens = (logprobs ?? promptLogprobs ?? undefined) !== undefined;
  return namesTokens ? llm.tokenTable() : new TokenTable(undefined);
}

/**
 * Runs a request and replies in the endpoint's format.
 * @throws whatever stops it before anything of the reply is sent.
 */
export async function generate<Prompt>(
  c: RequestContext,
  context: ServerContext,
  request: GenerationRequest,
  format: ReplyFormat<Prompt>,
): Promise<Response> {
  const run = new Generation(c, context, request, format);
  try {
    await run.start();
    return request.body.stream ? run.stream() : await run.whole();
  } catch (error) {
    run.close();
    throw error;
  }
}

/** A request from its admission to the end of its reply. */
class Generation<Prompt> {
  readonly #lifetime: RequestLifetime;
  readonly #completions: number;
  #stream: GenerationStream | undefined;
  #usage: UsageCounter | undefined;
  #closed = false;

  constructor(
    private readonly c: RequestContext,
    private readonly context: ServerContext,
    private readonly request: GenerationRequest,
    private readonly format: ReplyFormat<Prompt>,
  ) {
    const { prompts, sampling, model } = request;
    this.c.get("tracked").record.model = model;
    // Invalid counts are the engine's to refuse.
    const n = Number.isInteger(sampling.n) ? Math.min(Math.max(sampling.n!, 1), 128) : 1;
    this.#completions = prompts.length * n;
    const started = () =>
      this.#stream !== undefined &&
      (context.llm.stats.waiting === 0 ||
        this.#stream.requests.some(({ metrics }) => metrics.firstScheduledTime !== undefined));
    this.#lifetime = admitRequest(c, context, this.#completions, started);
  }

  /** Submits all prompts or, if one is refused, none. */
  async start(): Promise<void> {
    const { body, prompts, sampling } = this.request;
    const { isolateCacheByKey, maxReplyLogprobs } = this.context.config;
    const { names, promptScores, limitTurn, pooling } = this.request;
    const asks = sampling.logprobs === undefined ? "prompt_logprobs" : (names?.["logprobs"] ?? "logprobs");
    const maxOutputTokens = outputBound(this.#completions, sampling.logprobs, maxReplyLogprobs);
    const options: SubmitOptions = {
      ...{ signal: this.#lifetime.signal, ...tokenizeOptions(body) },
      ...(maxOutputTokens !== undefined && { maxOutputTokens }),
      ...(limitTurn && { limitTurn }),
      ...(pooling && { pooling }),
      onChecked: (requests) => checkReplySize(requests, promptScores, maxReplyLogprobs, asks),
    };
    const salt = cacheSalt(this.c.get("caller"), body.cache_salt ?? undefined, isolateCacheByKey);
    const salted = prompts.map((prompt) => withSalt(prompt, salt));
    // Prompts submitted after the lifetime's end are aborted by its signal.
    const stream = this.context.llm.submit(salted, sampling, options);
    try {
      this.#stream = await this.#lifetime.race(stream);
    } catch (error) {
      throw renamed(error, names);
    }
    this.#usage = new UsageCounter(this.#stream.requests, this.context.config.enablePromptTokensDetails);
  }

  /** The whole reply: a long one is written as the client reads it. */
  async whole(): Promise<Response> {
    for await (const chunk of this.#chunks(Number.POSITIVE_INFINITY)) this.format.add(chunk);
    const parts = merged(this.format.document(this.#usageSoFar()));
    const headers = { "Content-Type": "application/json" };
    const first = parts.next().value ?? "";
    const second = parts.next();
    if (second.done) {
      this.close();
      return this.c.body(first, 200, headers);
    }
    const { value } = second;
    async function* all(): AsyncGenerator<string, void, undefined> {
      yield* [first, value];
      yield* parts;
    }
    return this.c.body(replyStream(all(), this.#writing()), 200, headers);
  }

  /** The reply as events. */
  stream(): Response {
    const failure = this.format.failure?.bind(this.format);
    return this.c.body(eventStream(this.#events(), this.#writing(), failure), 200, SSE_HEADERS);
  }

  /** Ends what still runs and counts the request out. Safe to call twice. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#stream?.abort();
    this.#lifetime[Symbol.dispose]();
    if (!this.#usage) return;
    const { record } = this.c.get("tracked");
    record.promptTokens = this.#usage.promptTokens;
    record.completionTokens = this.#usage.completionTokens;
    for (const [i, tokens] of this.#usage.longest().entries())
      this.context.metrics.observeLongest(this.#stream!.requests[i]!.replica, tokens);
  }

  /** The request is under way until its reply has been written. */
  #writing() {
    const tracked = this.c.get("tracked");
    tracked.streaming = true;
    return {
      writeStallSeconds: this.context.config.writeStallSeconds,
      abort: (reason: ApiError) => this.#lifetime.abort(reason),
      onEnd: (told?: ApiError, error?: unknown) => {
        if (told) tracked.failed(error, told);
        this.close();
        tracked.finish(told?.status ?? 200);
      },
    };
  }

  async *#events(): AsyncGenerator<string, void, undefined> {
    const interval = this.request.body.stream_interval ?? this.context.config.streamInterval;
    const usage = () => this.#usageSoFar();
    for (const event of this.format.opening?.(usage) ?? []) yield* merged(event);
    for await (const chunk of this.#chunks(interval)) {
      for (const event of this.format.events(chunk, usage)) yield* merged(event);
    }
    for (const event of this.format.closing(usage)) yield* merged(event);
  }

  #usageSoFar(): Usage {
    return this.#usage!.usage(this.format.reasoningTokens);
  }

  async *#chunks(interval: number): AsyncGenerator<Chunk<Prompt>, void, undefined> {
    const { promptOnly } = this.request;
    const { metrics } = this.context;
    const latest = new Map<number, number>();
    const onTokens = (choice: number, count: number, { replica }: SubmittedRequest) => {
      const now = performance.now();
      const before = latest.get(choice);
      latest.set(choice, now);
      if (before !== undefined && count > 0)
        metrics.observeInterToken(replica, (now - before) / 1000 / count);
    };
    const chunks = chunksOf(this.#stream!, {
      ...{ interval, onTokens, signal: this.#lifetime.signal },
      prompt: (request) => this.format.prompt(request),
      ...(promptOnly && { promptOnly }),
    });
    for await (const chunk of chunks) {
      this.#usage!.add(chunk);
      yield chunk;
    }
  }
}

/** An error of the engine with the endpoint's name of the parameter. */
export function renamed(error: unknown, names: GenerationRequest["names"]): unknown {
  const name = error instanceof InvalidRequestError && names?.[error.param];
  if (!name) return error;
  const { code, message } = toApiError(error);
  return invalidValue(name, message, code);
}

function withSalt(prompt: Prompt | ChatPrompt, cacheSalt: string | undefined): Prompt | ChatPrompt {
  if (cacheSalt === undefined) return prompt;
  return typeof prompt === "string" ? { prompt, cacheSalt } : { ...prompt, cacheSalt };
}
