import { InvalidRequestError } from "../base/errors.ts";
import type { GenerationStream } from "../base/outputs.ts";
import type { SamplingParams } from "../base/sampling-params.ts";
import type { ChatPrompt, Prompt } from "../tokenizer/prompt-encoder.ts";
import { cacheSalt } from "./auth.ts";
import { append, type Chunk, type ChunkOptions, chunksOf } from "./chunks.ts";
import type { RequestContext, ServerContext } from "./context.ts";
import { type ApiError, invalidValue, toApiError } from "./errors.ts";
import type { ReplyFormat } from "./reply-format.ts";
import { admitRequest, type RequestLifetime } from "./request-lifetime.ts";
import { type GenerationBody, tokenizeOptions } from "./schemas/request-body.ts";
import { DONE, event, eventStream, SSE_HEADERS } from "./sse.ts";
import { UsageCounter } from "./usage.ts";

/** Longest prompt that may be scored, in tokens: log-probabilities of all of them are kept. */
const MAX_SCORED_PROMPT = 8192;

/** A body of either completions endpoint, checked and in the engine's terms. */
export interface GenerationRequest extends Pick<ChunkOptions, "echo" | "promptOnly"> {
  readonly body: GenerationBody;
  readonly model: string;
  readonly prompts: readonly (Prompt | ChatPrompt)[];
  readonly sampling: SamplingParams;
  /** The endpoint's names of the engine's parameters, where they differ from the usual. */
  readonly names?: Readonly<Record<string, string>>;
}

/**
 * Runs a request and replies in the endpoint's format.
 * @throws whatever stops it before anything of the reply is sent.
 */
export async function generate(
  c: RequestContext,
  context: ServerContext,
  request: GenerationRequest,
  format: ReplyFormat,
): Promise<Response> {
  const run = new Generation(c, context, request);
  try {
    await run.start();
    if (!request.body.stream) return c.json(await run.document(format));
  } catch (error) {
    run.close();
    throw error;
  }
  return run.stream(format);
}

/** A request from its admission to the end of its reply. */
class Generation {
  readonly #lifetime: RequestLifetime;
  #stream: GenerationStream | undefined;
  #usage: UsageCounter | undefined;
  #closed = false;

  constructor(
    private readonly c: RequestContext,
    private readonly context: ServerContext,
    private readonly request: GenerationRequest,
  ) {
    const { prompts, sampling, model } = request;
    this.c.get("tracked").record.model = model;
    // Invalid counts are the engine's to refuse.
    const n = Number.isInteger(sampling.n) ? Math.min(Math.max(sampling.n!, 1), 128) : 1;
    const started = () =>
      this.#stream !== undefined &&
      (context.llm.stats.waiting === 0 ||
        this.#stream.requests.some(({ metrics }) => metrics.firstScheduledTime !== undefined));
    this.#lifetime = admitRequest(c, context, prompts.length * n, started);
  }

  /** Submits all prompts or, if one is refused, none. */
  async start(): Promise<void> {
    const { body, prompts, sampling } = this.request;
    const options = { signal: this.#lifetime.signal, ...tokenizeOptions(body) };
    const { isolateCacheByKey } = this.context.config;
    const salt = cacheSalt(this.c.get("caller"), body.cache_salt ?? undefined, isolateCacheByKey);
    const salted = prompts.map((prompt) => withSalt(prompt, salt));
    // Prompts submitted after the lifetime's end are aborted by its signal.
    const stream = this.context.llm.submit(salted, sampling, options);
    try {
      this.#stream = await this.#lifetime.race(stream);
    } catch (error) {
      throw this.#renamed(error);
    }
    const { requests } = this.#stream;
    for (const { numPromptTokens, sampling } of requests) {
      if (sampling.promptLogprobs !== undefined && numPromptTokens > MAX_SCORED_PROMPT)
        throw invalidValue(
          "logprobs",
          `log-probabilities of prompts are limited to ${MAX_SCORED_PROMPT} tokens`,
        );
    }
    this.#usage = new UsageCounter(requests, this.context.config.enablePromptTokensDetails);
  }

  /** The whole reply. */
  async document(format: ReplyFormat): Promise<object> {
    const choices: Chunk[] = [];
    for await (const chunk of this.#chunks(Number.POSITIVE_INFINITY)) {
      const before = choices[chunk.choice];
      choices[chunk.choice] = before ? append(before, chunk) : chunk;
    }
    const document = format.document(choices, this.#usage!.usage());
    this.close();
    return document;
  }

  /** The reply as events. */
  stream(format: ReplyFormat): Response {
    const tracked = this.c.get("tracked");
    tracked.streaming = true;
    const onEnd = (told?: ApiError, error?: unknown) => {
      if (told) tracked.failed(error, told);
      this.close();
      tracked.finish(told?.status ?? 200);
    };
    const body = eventStream(this.#events(format), {
      writeStallSeconds: this.context.config.writeStallSeconds,
      abort: (reason) => this.#lifetime.abort(reason),
      onEnd,
    });
    return this.c.body(body, 200, SSE_HEADERS);
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
    for (const tokens of this.#usage.longest()) this.context.metrics.observeLongest(tokens);
  }

  async *#events(format: ReplyFormat): AsyncGenerator<string, void, undefined> {
    const { stream_options: options, stream_interval: interval } = this.request.body;
    const withUsage = options?.continuous_usage_stats ?? false;
    const usage = this.#usage!;
    for await (const chunk of this.#chunks(interval ?? this.context.config.streamInterval)) {
      for (const data of format.events(chunk))
        yield event(withUsage ? { ...data, usage: usage.usage() } : data);
    }
    if (options?.include_usage) yield event(format.usageEvent(usage.usage()));
    yield DONE;
  }

  async *#chunks(interval: number): AsyncGenerator<Chunk, void, undefined> {
    const { echo, promptOnly } = this.request;
    const { metrics } = this.context;
    const latest = new Map<number, number>();
    const onTokens = (choice: number, count: number) => {
      const now = performance.now();
      const before = latest.get(choice);
      latest.set(choice, now);
      if (before !== undefined && count > 0) metrics.observeInterToken((now - before) / 1000 / count);
    };
    const chunks = chunksOf(this.#stream!, {
      ...{ interval, onTokens, signal: this.#lifetime.signal },
      ...(echo && { echo }),
      ...(promptOnly && { promptOnly }),
    });
    for await (const chunk of chunks) {
      this.#usage!.add(chunk);
      yield chunk;
    }
  }

  /** An error of the engine with the endpoint's name of the parameter. */
  #renamed(error: unknown): unknown {
    const name = error instanceof InvalidRequestError && this.request.names?.[error.param];
    if (!name) return error;
    const { code, message } = toApiError(error);
    return invalidValue(name, message, code);
  }
}

function withSalt(prompt: Prompt | ChatPrompt, cacheSalt: string | undefined): Prompt | ChatPrompt {
  if (cacheSalt === undefined) return prompt;
  return typeof prompt === "string" ? { prompt, cacheSalt } : { ...prompt, cacheSalt };
}
