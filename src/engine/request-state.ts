import type { PositionLogprobs, RequestOutput } from "../base/outputs.ts";
import type { LogprobRows } from "../runner/types.ts";
import { type Completion, positionLogprobs } from "./completion.ts";
import type { EngineRequest } from "./request.ts";

/** What a request has come to so far: its completions, what was asked about its prompt, and its times. */
export class RequestState {
  readonly request: EngineRequest;
  readonly completions: readonly Completion[];
  /** float32 [promptTokens, vocabSize], from the first chunk on; rows not computed yet are 0. */
  logits: Float32Array | undefined;
  /** Tokens taken from the prefix cache. */
  numCachedTokens = 0;
  firstScheduledTime: number | undefined;
  firstTokenTime: number | undefined;
  finishedTime: number | undefined;
  readonly #vocabSize: number;
  readonly #promptLogprobs: (PositionLogprobs | null)[] | undefined;

  constructor(request: EngineRequest, completions: readonly Completion[], vocabSize: number) {
    const promptLength = request.promptTokenIds.length;
    this.request = request;
    this.completions = completions;
    this.#vocabSize = vocabSize;
    if (request.sampling.promptLogprobs !== undefined)
      this.#promptLogprobs = new Array(promptLength).fill(null);
  }

  get finished(): boolean {
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
    this.logits ??= new Float32Array(this.request.promptTokenIds.length * this.#vocabSize);
    this.logits.set(rows, start * this.#vocabSize);
  }

  output(): RequestOutput {
    const { id, prompt, promptTokenIds, arrivalTime } = this.request;
    const { firstScheduledTime, firstTokenTime, finishedTime } = this;
    return {
      requestId: id,
      ...(prompt !== undefined && { prompt }),
      promptTokenIds,
      ...(this.#promptLogprobs && { promptLogprobs: this.#promptLogprobs.slice() }),
      outputs: this.completions.map((completion) => completion.output()),
      finished: this.finished,
      numCachedTokens: this.numCachedTokens,
      metrics: {
        arrivalTime,
        ...(firstScheduledTime !== undefined && { firstScheduledTime }),
        ...(firstTokenTime !== undefined && { firstTokenTime }),
        ...(finishedTime !== undefined && { finishedTime }),
      },
    };
  }
}
