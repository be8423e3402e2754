import type {
  CompletionDelta,
  CompletionOutput,
  FinishReason,
  GenerationStream,
  PositionLogprobs,
  RequestOutput,
  SubmittedRequest,
} from "../base/outputs.ts";

/** Puts a completion together from its deltas. */
class CompletionBuilder {
  readonly #tokenIds: number[] = [];
  readonly #logprobs: PositionLogprobs[] = [];
  #text = "";
  #cumulativeLogprob = 0;
  #finishReason: FinishReason | null = null;
  #stopReason: string | number | null = null;
  #error: Error | undefined;

  constructor(
    private readonly index: number,
    private readonly hasLogprobs: boolean,
  ) {}

  add({ text, tokenIds, logprobs = [], finishReason, stopReason, error }: CompletionDelta): void {
    this.#text += text;
    for (const token of tokenIds) this.#tokenIds.push(token);
    for (let i = 0; i < logprobs.length; i++) {
      this.#logprobs.push(logprobs[i]!);
      this.#cumulativeLogprob += logprobs[i]!.get(tokenIds[i]!)!.logprob;
    }
    this.#finishReason = finishReason;
    this.#stopReason = stopReason;
    this.#error = error;
  }

  /** All text and tokens up to now. */
  soFar(): Pick<CompletionOutput, "text" | "tokenIds" | "logprobs"> {
    const logprobs = this.hasLogprobs && { logprobs: this.#logprobs.slice() };
    return { text: this.#text, tokenIds: this.#tokenIds.slice(), ...logprobs };
  }

  output(): CompletionOutput {
    return {
      ...{ index: this.index, ...this.soFar() },
      ...(this.hasLogprobs && { cumulativeLogprob: this.#cumulativeLogprob }),
      ...{ finishReason: this.#finishReason, stopReason: this.#stopReason },
      ...(this.#error && { error: this.#error }),
    };
  }
}

/**
 * Reads a stream to its end.
 * @param onDelta called with each delta
 * @returns the output of each of its requests, in their order.
 */
export async function readOutputs(
  stream: GenerationStream,
  onDelta?: (delta: CompletionDelta) => void,
): Promise<RequestOutput[]> {
  const builders = buildersOf(stream.requests);
  for await (const delta of stream) {
    builders.get(delta.requestId)![delta.index]!.add(delta);
    onDelta?.(delta);
  }
  return stream.requests.map(({ id, prompt, promptTokenIds, promptLogprobs, numCachedTokens, metrics }) => ({
    requestId: id,
    ...(prompt !== undefined && { prompt }),
    promptTokenIds,
    ...(promptLogprobs && { promptLogprobs }),
    outputs: builders.get(id)!.map((builder) => builder.output()),
    ...{ finished: true, numCachedTokens, metrics },
  }));
}

/** The deltas of a stream; with `outputKind` "cumulative" each holds all text and tokens so far. */
export async function* readDeltas(
  stream: GenerationStream,
): AsyncGenerator<CompletionDelta, void, undefined> {
  const builders = buildersOf(stream.requests.filter(({ sampling }) => sampling.outputKind === "cumulative"));
  for await (const delta of stream) {
    const builder = builders.get(delta.requestId)?.[delta.index];
    builder?.add(delta);
    yield builder ? { ...delta, ...builder.soFar() } : delta;
  }
}

function buildersOf(requests: readonly SubmittedRequest[]): ReadonlyMap<string, CompletionBuilder[]> {
  return new Map(
    requests.map(({ id, sampling: { n, logprobs } }) => [
      id,
      Array.from({ length: n }, (_, index) => new CompletionBuilder(index, logprobs !== undefined)),
    ]),
  );
}
