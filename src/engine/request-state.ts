import { RequestFailedError } from "../base/errors.ts";
import type { FinishedRequest, PositionLogprobs, RequestMetrics } from "../base/outputs.ts";
import type { LogprobRows } from "../runner/types.ts";
import { type Completion, positionLogprobs } from "./completion.ts";
import type { EngineRequest } from "./request.ts";
import type { PromptProgress } from "./step-output.ts";

/** A request under way: its completions, what was asked about its prompt, and its times. */
export class RequestState {
  readonly request: EngineRequest;
  readonly completions: readonly Completion[];
  /** Tokens taken from the prefix cache. */
  numCachedTokens = 0;
  /** One of the completions has sent a delta. */
  hasDelta = false;
  firstScheduledTime: number | undefined;
  firstTokenTime: number | undefined;
  finishedTime: number | undefined;
  readonly #vocabSize: number;
  readonly #promptLogprobs: (PositionLogprobs | null)[] | undefined;
  /** float32 [promptTokens, vocabSize], from the first chunk on; rows not computed yet are 0. */
  #logits: Float32Array | undefined;

  /** float32 [hiddenSize], the pooled hidden states of the positions so far. */
  #embedding: Float32Array | undefined;

  constructor(request: EngineRequest, completions: readonly Completion[], vocabSize: number) {
    const promptLength = request.promptTokenIds.length;
    this.request = request;
    this.completions = completions;
    this.#vocabSize = vocabSize;
    if (request.sampling.promptLogprobs !== undefined)
      this.#promptLogprobs = new Array(promptLength).fill(null);
  }

  get isFinished(): boolean {
    return this.completions.every((completion) => completion.finishReason !== null);
  }

  /** Keeps what the positions from `start` on predict; asked for again after a preemption, they come out the same. */
  recordPromptLogprobs(start: number, rows: LogprobRows, decodeToken: (id: number) => string): void {
    const kept = this.#promptLogprobs;
    const count = this.request.sampling.promptLogprobs;
    if (!kept || count === undefined) return;
    for (let i = 0; i < rows.chosenIds.length && start + i + 1 < kept.length; i++)
      kept[start + i + 1] = positionLogprobs(rows, i, count, decodeToken);
  }

  /** @param rows float32 [count, vocabSize], of the positions from `start` on. */
  recordLogits(start: number, rows: Float32Array): void {
    this.#logits ??= new Float32Array(this.request.promptTokenIds.length * this.#vocabSize);
    this.#logits.set(rows, start * this.#vocabSize);
  }

  /**
   * Pools the hidden states of `count` positions from `start` on. After a preemption they begin at 0 again.
   * @param rows float32 [count, hiddenSize]. @throws RequestFailedError `numerical_error`.
   */
  recordStates(start: number, rows: Float32Array, count: number): void {
    const size = rows.length / count;
    if (rows.some((value) => !Number.isFinite(value)))
      throw new RequestFailedError("the hidden states are not finite numbers", "numerical_error");
    if (this.request.pooling === "last") {
      this.#embedding = rows.slice(-size);
      return;
    }
    if (start === 0) this.#embedding = new Float32Array(size);
    const share = 1 / this.request.promptTokenIds.length;
    for (let i = 0; i < rows.length; i++) this.#embedding![i % size]! += rows[i]! * share;
  }

  /** With what was asked about the prompt, once there is a delta. */
  promptProgress(): PromptProgress {
    const { numCachedTokens } = this;
    return {
      ...{ id: this.request.id, numCachedTokens, metrics: this.#metrics() },
      ...(this.hasDelta && this.#promptLogprobs && { promptLogprobs: this.#promptLogprobs }),
      ...(this.hasDelta && this.#logits && { logits: this.#logits }),
      ...(this.hasDelta && this.#embedding && { embedding: this.#embedding }),
    };
  }

  /** Of a finished request. */
  summary(): FinishedRequest {
    const { id, promptTokenIds, sampling } = this.request;
    const completionTokens = this.completions.map(({ numTokens }) => numTokens);
    return {
      id,
      finishReasons: this.completions.map(({ finishReason }) => finishReason!),
      promptTokens: promptTokenIds.length,
      cachedTokens: this.numCachedTokens,
      generationTokens: completionTokens.reduce((total, count) => total + count, 0),
      completionTokens,
      maxTokens: sampling.maxTokens,
      n: sampling.n,
      metrics: this.#metrics(),
    };
  }

  #metrics(): RequestMetrics {
    const { firstScheduledTime, firstTokenTime, finishedTime } = this;
    return {
      arrivalTime: this.request.arrivalTime,
      ...(firstScheduledTime !== undefined && { firstScheduledTime }),
      ...(firstTokenTime !== undefined && { firstTokenTime }),
      ...(finishedTime !== undefined && { finishedTime }),
    };
  }
}
