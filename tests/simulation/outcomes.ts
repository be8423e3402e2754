import type { CompletionDelta, FinishedRequest, PositionLogprobs } from "../../src/base/outputs.ts";
import type { PromptProgress, StepOutput } from "../../src/engine/step-output.ts";

/** A completion put together from its deltas. */
export interface CompletionOutcome {
  text: string;
  readonly tokenIds: number[];
  readonly logprobs: PositionLogprobs[];
  finishReason: CompletionDelta["finishReason"];
  stopReason: CompletionDelta["stopReason"];
  error: Error | undefined;
}

/** Everything that steps have brought, by request. Throws at what no step may bring. */
export class Outcomes {
  readonly deltas: CompletionDelta[] = [];
  readonly prompts = new Map<string, PromptProgress>();
  readonly finished = new Map<string, FinishedRequest>();
  readonly #completions = new Map<string, CompletionOutcome[]>();

  take({ deltas, prompts, finished }: StepOutput): void {
    for (const progress of prompts) {
      const known = this.prompts.get(progress.id);
      if (known?.promptLogprobs ?? known?.logits) throw new Error(`${progress.id}: its prompt came twice`);
      this.prompts.set(progress.id, progress);
    }
    for (const delta of deltas) {
      if (!this.prompts.has(delta.requestId))
        throw new Error(`${delta.requestId}: a delta before its prompt`);
      this.deltas.push(delta);
      this.#append(delta);
    }
    for (const summary of finished) {
      if (this.finished.has(summary.id)) throw new Error(`${summary.id} finished twice`);
      this.finished.set(summary.id, summary);
    }
  }

  completion(id: string, index = 0): CompletionOutcome {
    const completions = this.#completions.get(id) ?? [];
    this.#completions.set(id, completions);
    completions[index] ??= {
      ...{ text: "", tokenIds: [], logprobs: [] },
      ...{ finishReason: null, stopReason: null, error: undefined },
    };
    return completions[index];
  }

  completions(id: string): readonly CompletionOutcome[] {
    return this.#completions.get(id) ?? [];
  }

  #append({ requestId, index, text, tokenIds, logprobs = [], ...end }: CompletionDelta): void {
    const completion = this.completion(requestId, index);
    if (completion.finishReason !== null) throw new Error(`${requestId}/${index}: a delta after the end`);
    completion.text += text;
    completion.tokenIds.push(...tokenIds);
    completion.logprobs.push(...logprobs);
    completion.finishReason = end.finishReason;
    completion.stopReason = end.stopReason;
    completion.error = end.error;
  }
}
