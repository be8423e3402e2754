import type {
  CompletionDelta,
  FinishReason,
  GenerationStream,
  PositionLogprobs,
  SubmittedRequest,
} from "../base/outputs.ts";

/** A token and the log-probabilities at its position; null for the first of a prompt, which nothing predicts. */
export interface ScoredToken {
  readonly id: number;
  readonly text: string;
  readonly position: PositionLogprobs | null;
}

/** New text and tokens of one choice of a reply. Concatenated, a choice's chunks are the choice. */
export interface Chunk {
  /** Index among all choices of the reply: prompt × n + completion. */
  readonly choice: number;
  readonly request: SubmittedRequest;
  /** Whether it is the first of its choice. */
  readonly first: boolean;
  text: string;
  tokenIds: number[];
  /** Present if the request asked for log-probabilities. */
  scores?: ScoredToken[];
  finishReason: FinishReason | null;
  stopReason: string | number | null;
}

export interface ChunkOptions {
  /** Tokens per chunk, after the first. */
  readonly interval: number;
  /** Put before the first chunk of each choice. */
  readonly echo?: (request: SubmittedRequest) => Promise<Echo>;
  /** Leave out what was generated. */
  readonly promptOnly?: boolean;
  /** Aborted, with an error as reason, to end the reply. */
  readonly signal: AbortSignal;
  /** Told of the tokens of each delta, for metrics. */
  readonly onTokens?: (choice: number, count: number) => void;
}

/** The prompt at the beginning of a reply: its text and, if asked for, its tokens' log-probabilities. */
export interface Echo {
  readonly text: string;
  readonly scores: readonly ScoredToken[];
}

/**
 * The chunks of a reply in the order in which they come, for streaming and other replies alike. However it ends, the
 * requests end too.
 * @throws the error of a completion that failed, or the signal's reason.
 */
export async function* chunksOf(
  stream: GenerationStream,
  options: ChunkOptions,
): AsyncGenerator<Chunk, void, undefined> {
  const { signal, promptOnly, echo, onTokens, interval } = options;
  const places = new Map(
    stream.requests.map((request, i) => [request.id, { request, base: i * request.sampling.n }]),
  );
  const echoes = new Map<string, Promise<Echo>>();
  const held = new Map<number, Chunk>();
  const seen = new Set<number>();
  try {
    for await (const delta of stream) {
      if (delta.error) throw delta.error;
      if (delta.finishReason === "abort" && signal.aborted) throw signal.reason;
      const { request, base } = places.get(delta.requestId)!;
      const choice = base + delta.index;
      onTokens?.(choice, delta.tokenIds.length);
      const first = !seen.has(choice);
      let chunk = chunkOf(delta, choice, request, first);
      if (promptOnly) chunk = withoutOutput(chunk);
      if (first && echo) {
        if (!echoes.has(request.id)) echoes.set(request.id, echo(request));
        chunk = prepend(await echoes.get(request.id)!, chunk);
      }
      const before = held.get(choice);
      if (before) chunk = append(before, chunk);
      if (chunk.finishReason === null && !first && chunk.tokenIds.length < interval) {
        held.set(choice, chunk);
        continue;
      }
      held.delete(choice);
      seen.add(choice);
      yield chunk;
    }
  } finally {
    stream.abort();
  }
}

/** Puts `after` at the end of `before`, which it changes. */
export function append(before: Chunk, after: Chunk): Chunk {
  before.text += after.text;
  for (const id of after.tokenIds) before.tokenIds.push(id);
  for (const token of after.scores ?? []) before.scores?.push(token);
  before.finishReason = after.finishReason;
  before.stopReason = after.stopReason;
  return before;
}

function chunkOf(delta: CompletionDelta, choice: number, request: SubmittedRequest, first: boolean): Chunk {
  const { text, tokenIds, logprobs, finishReason, stopReason } = delta;
  return {
    ...{ choice, request, first, text, tokenIds: [...tokenIds], finishReason, stopReason },
    ...(logprobs && { scores: logprobs.map((position, i) => scored(tokenIds[i]!, position)) }),
  };
}

/** A token with the text and log-probability that its own position gives it. */
export function scored(id: number, position: PositionLogprobs): ScoredToken {
  return { id, text: position.get(id)?.decodedToken ?? "", position };
}

function prepend(echo: Echo, chunk: Chunk): Chunk {
  const scores = chunk.scores && [...echo.scores, ...chunk.scores];
  return { ...chunk, text: echo.text + chunk.text, ...(scores && { scores }) };
}

function withoutOutput(chunk: Chunk): Chunk {
  const finishReason = chunk.finishReason === null ? null : "length";
  return { ...chunk, text: "", tokenIds: [], finishReason, ...(chunk.scores && { scores: [] }) };
}
