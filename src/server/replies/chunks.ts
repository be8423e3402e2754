import type {
  CompletionDelta,
  FinishReason,
  GenerationStream,
  SubmittedRequest,
} from "../../base/outputs.ts";
import type { ScoredToken } from "./logprobs.ts";

/** New text and tokens of one choice of a reply. Concatenated, a choice's chunks are the choice. */
export interface Chunk<Prompt> {
  /** Index among all choices of the reply: prompt × n + completion. */
  readonly choice: number;
  readonly request: SubmittedRequest;
  /** With the first chunk of its choice: the part of the reply that its prompt makes. */
  readonly prompt: Prompt | undefined;
  text: string;
  tokenIds: number[];
  /** Present if the request asked for log-probabilities. */
  scores?: ScoredToken[];
  finishReason: FinishReason | null;
  stopReason: string | number | null;
}

export interface ChunkOptions<Prompt> {
  /** Tokens per chunk, after the first. */
  readonly interval: number;
  /** The part of the reply that a prompt makes; called once for each. */
  readonly prompt: (request: SubmittedRequest) => Promise<Prompt>;
  /** Leave out what was generated. */
  readonly promptOnly?: boolean;
  /** Aborted, with an error as reason, to end the reply. */
  readonly signal: AbortSignal;
  /** Told of the tokens of each delta, for metrics. */
  readonly onTokens?: (choice: number, count: number, request: SubmittedRequest) => void;
}

/**
 * The chunks of a reply in the order in which they come, for streaming and other replies alike. However it ends, the
 * requests end too.
 * @throws the error of a completion that failed, or the signal's reason.
 */
export async function* chunksOf<Prompt>(
  stream: GenerationStream,
  options: ChunkOptions<Prompt>,
): AsyncGenerator<Chunk<Prompt>, void, undefined> {
  const { signal, promptOnly, onTokens, interval } = options;
  const places = new Map(
    stream.requests.map((request, i) => [request.id, { request, base: i * request.sampling.n }]),
  );
  const prompts = new Map<string, Promise<Prompt>>();
  const held = new Map<number, Chunk<Prompt>>();
  const begun = new Set<number>();
  try {
    for await (const delta of stream) {
      if (delta.error) throw delta.error;
      if (delta.finishReason === "abort" && signal.aborted) throw signal.reason;
      const { request, base } = places.get(delta.requestId)!;
      const choice = base + delta.index;
      onTokens?.(choice, delta.tokenIds.length, request);
      let prompt: Prompt | undefined;
      if (!begun.has(choice)) {
        begun.add(choice);
        if (!prompts.has(request.id)) prompts.set(request.id, options.prompt(request));
        prompt = await prompts.get(request.id)!;
      }
      let chunk = chunkOf(delta, choice, request, prompt);
      if (promptOnly) chunk = withoutOutput(chunk);
      const before = held.get(choice);
      if (before) chunk = append(before, chunk);
      if (chunk.finishReason === null && chunk.prompt === undefined && chunk.tokenIds.length < interval) {
        held.set(choice, chunk);
        continue;
      }
      held.delete(choice);
      yield chunk;
    }
  } finally {
    stream.abort();
  }
}

/** Puts `after` at the end of `before`, which it changes. */
function append<Prompt>(before: Chunk<Prompt>, after: Chunk<Prompt>): Chunk<Prompt> {
  before.text += after.text;
  for (const id of after.tokenIds) before.tokenIds.push(id);
  for (const token of after.scores ?? []) before.scores?.push(token);
  before.finishReason = after.finishReason;
  before.stopReason = after.stopReason;
  return before;
}

function chunkOf<Prompt>(
  delta: CompletionDelta,
  choice: number,
  request: SubmittedRequest,
  prompt: Prompt | undefined,
): Chunk<Prompt> {
  const { text, tokenIds, logprobs, finishReason, stopReason } = delta;
  return {
    ...{ choice, request, prompt, text, tokenIds: [...tokenIds], finishReason, stopReason },
    ...(logprobs && { scores: logprobs.map((position, i) => ({ id: tokenIds[i]!, position })) }),
  };
}

function withoutOutput<Prompt>(chunk: Chunk<Prompt>): Chunk<Prompt> {
  const finishReason = chunk.finishReason === null ? null : "length";
  return { ...chunk, text: "", tokenIds: [], finishReason, ...(chunk.scores && { scores: [] }) };
}
