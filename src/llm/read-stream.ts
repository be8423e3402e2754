import type {
  CompletionDelta,
  CompletionOutput,
  GenerationStream,
  RequestOutput,
  SubmittedRequest,
} from "../base/outputs.ts";
import type { OwnedDelta } from "../engine/step-output.ts";
import { appendDelta } from "./delta-queue.ts";

/**
 * Reads a stream to its end.
 * @param onDelta called with each delta
 * @returns the output of each of its requests, in their order.
 */
export async function readOutputs(
  stream: GenerationStream,
  onDelta?: (delta: CompletionDelta) => void,
): Promise<RequestOutput[]> {
  const completions = emptyCompletions(stream.requests);
  for await (const delta of stream) {
    appendDelta(completions.get(delta.requestId)![delta.index]!, delta);
    onDelta?.(delta);
  }
  return stream.requests.map(({ id, prompt, promptTokenIds, promptLogprobs, numCachedTokens, metrics }) => ({
    requestId: id,
    ...(prompt !== undefined && { prompt }),
    promptTokenIds,
    ...(promptLogprobs && {
      promptLogprobs: promptLogprobs.map((position) => position && new Map(position)),
    }),
    outputs: completions.get(id)!.map(completionOutput),
    ...{ finished: true, numCachedTokens, metrics },
  }));
}

/** The deltas of a stream; with `outputKind` "cumulative" each holds all text and tokens so far. */
export async function* readDeltas(
  stream: GenerationStream,
): AsyncGenerator<CompletionDelta, void, undefined> {
  const isCumulative = ({ sampling }: SubmittedRequest) => sampling.outputKind === "cumulative";
  const completions = emptyCompletions(stream.requests.filter(isCumulative));
  for await (const delta of stream) {
    const soFar = completions.get(delta.requestId)?.[delta.index];
    if (soFar) {
      appendDelta(soFar, delta);
      const { tokenIds, logprobs } = soFar;
      yield { ...soFar, tokenIds: tokenIds.slice(), ...(logprobs && { logprobs: logprobs.slice() }) };
    } else yield delta;
  }
}

/** For each request a delta of each completion that deltas can be appended to. */
function emptyCompletions(requests: readonly SubmittedRequest[]): ReadonlyMap<string, OwnedDelta[]> {
  return new Map(
    requests.map(({ id: requestId, sampling }) => {
      const none = { requestId, text: "", finishReason: null, stopReason: null };
      const logprobs = sampling.logprobs !== undefined;
      const completions = Array.from({ length: sampling.n }, (_, index) => {
        return { ...none, index, tokenIds: [], ...(logprobs && { logprobs: [] }) };
      });
      return [requestId, completions];
    }),
  );
}

function completionOutput({ requestId: _, ...completion }: OwnedDelta): CompletionOutput {
  const { logprobs, tokenIds } = completion;
  if (!logprobs) return completion;
  const cumulativeLogprob = logprobs.reduce(
    (sum, position, i) => sum + position.get(tokenIds[i]!)!.logprob,
    0,
  );
  return { ...completion, cumulativeLogprob };
}
