import { InvalidRequestError } from "./errors.ts";
import type { CompletionDelta, SubmittedRequest } from "./outputs.ts";

/** The vector of a prompt: the hidden state of its last token, or the mean of all. */
export type Pooling = "last" | "mean";

/** How hidden states become vectors. */
export interface EmbedOptions {
  /** The hidden state of the last token, or the mean of all tokens'. Default "last". */
  readonly pooling?: Pooling;
  /** Scale vectors to length 1. Default true. */
  readonly normalize?: boolean;
  /** Keep the first so many numbers of each vector, before it is scaled, as models trained for it allow. Default all. */
  readonly dimensions?: number;
  /** Ends the requests early, with its reason. */
  readonly signal?: AbortSignal;
}

/** Checks what does not depend on a prompt. @throws InvalidRequestError naming the option. */
export function checkEmbedOptions({ pooling, dimensions }: EmbedOptions, hiddenSize: number): void {
  if (pooling !== undefined && pooling !== "last" && pooling !== "mean")
    throw new InvalidRequestError("pooling", 'pooling must be "last" or "mean"');
  const isRight =
    dimensions === undefined || (Number.isInteger(dimensions) && dimensions > 0 && dimensions <= hiddenSize);
  if (isRight) return;
  throw new InvalidRequestError("dimensions", `dimensions must be an integer from 1 to ${hiddenSize}`);
}

/** The vectors of requests that were submitted with `pooling`, once all have ended. @throws what one of them failed of. */
export async function readEmbeddings(
  stream: AsyncIterable<CompletionDelta> & { readonly requests: readonly SubmittedRequest[] },
  options: EmbedOptions,
): Promise<Float32Array[]> {
  for await (const { error, finishReason } of stream) {
    if (error) throw error;
    if (finishReason === "abort") throw options.signal?.reason ?? new DOMException("aborted", "AbortError");
  }
  return stream.requests.map(({ embedding }) => shapedEmbedding(embedding!, options));
}

/** A vector cut to its dimensions and, unless that is not wanted, scaled to length 1. */
export function shapedEmbedding(
  vector: Float32Array,
  { normalize = true, dimensions = vector.length }: EmbedOptions,
): Float32Array {
  const cut = vector.slice(0, dimensions);
  if (!normalize) return cut;
  const length = Math.sqrt(cut.reduce((sum, value) => sum + value * value, 0));
  return length === 0 ? cut : cut.map((value) => value / length);
}
