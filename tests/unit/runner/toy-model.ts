import type { Backend, SampleRows, SlotTensors } from "../../../src/backend/backend.ts";
import type { Tensor } from "../../../src/backend/tensor.ts";
import type { ForwardContext, OpContext } from "../../../src/layers/forward-context.ts";
import type { ModelConfig } from "../../../src/models/config.ts";
import type { CausalLM } from "../../../src/models/model.ts";
import { kvLayout } from "../../../src/runner/kv-layout.ts";
import { ModelRunner, type ModelRunnerOptions } from "../../../src/runner/model-runner.ts";
import type { ScheduledBatch, ScheduledRow, SlotJoin, SlotSampling } from "../../../src/runner/types.ts";

export const VOCAB = 23;

/** 0 … length − 1 */
export function range(length: number): number[] {
  return Array.from({ length }, (_, i) => i);
}

/** Tokens in an order that differs for each `step` and does not repeat. */
export function someTokens(length: number, step: number): number[] {
  return range(length).map((i) => (i * step + Math.floor(i / VOCAB) * 2) % VOCAB);
}

/** The logits that follow `token` at `position`: all different, in another order for each of the two. */
export function logitsAfter(token: number, position: number): number[] {
  const first = token * 11 + position * 5 + Math.floor(position / VOCAB) * 3;
  return range(VOCAB).map((id) => ((id * 7 + first) % VOCAB) / 4);
}

/** log softmax(logits)[id] */
export function logprobOf(logits: readonly number[], id: number): number {
  return logits[id]! - Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit), 0));
}

/** A model without weights or attention, on a backend whose memory is the host's: hidden states are token and position. */
export class ToyModel implements CausalLM {
  readonly config = { vocabSize: VOCAB } as ModelConfig;

  forward({ backend, workspace, batch }: ForwardContext): Tensor {
    const hidden = workspace.tensor("hidden", "float32", [batch.numTokens, 2]);
    const [ids, positions] = [batch.tokenIds, batch.positions].map((tensor) => readInts(backend, tensor));
    const values = [...ids!].flatMap((id, t) => [id, positions![t]!]);
    backend.upload(hidden, Float32Array.from(values));
    return hidden;
  }

  logits({ backend }: Pick<OpContext, "backend">, out: Tensor, hidden: Tensor): void {
    const states = new Float32Array(backend.download(hidden).buffer);
    const rows = range(hidden.dim(0)).map((i) => logitsAfter(states[2 * i]!, states[2 * i + 1]!));
    backend.upload(out, Float32Array.from(rows.flat()));
  }

  states(_: unknown, hidden: Tensor): Tensor {
    return hidden;
  }

  drawTokens(
    { backend }: Pick<OpContext, "backend">,
    out: Tensor,
    hidden: Tensor,
    logits: Tensor,
    samples: SampleRows,
    slots: SlotTensors,
  ): void {
    this.logits({ backend }, logits, hidden);
    backend.sample(out, logits, logits, samples, slots);
  }
}

export function readInts(backend: Backend, tensor: Tensor): Int32Array {
  return new Int32Array(backend.download(tensor).buffer);
}

/** Greedy, unless told otherwise. */
export function toySampling(fields: Partial<SlotSampling> = {}): SlotSampling {
  return {
    ...{ temperature: 0, topP: 1, topK: 0, minP: 0, repetitionPenalty: 1, presencePenalty: 0 },
    ...{ frequencyPenalty: 0, seed: 0n, logitBias: [], bannedTokens: [], bannedUntil: 0 },
    ...{ allowedTokenIds: undefined, badWords: [], ...fields },
  };
}

/** Six slots of 400 tokens, in blocks of 16. */
export function toyRunner(
  backend: Backend,
  options: Partial<ModelRunnerOptions> = {},
  model: CausalLM = new ToyModel(),
): ModelRunner {
  return new ModelRunner(backend, model, {
    ...{ maxNumSeqs: 6, maxModelLen: 400, maxNumBatchedTokens: 512, blockSize: 16, enforceEager: true },
    layout: kvLayout([{ numKvHeads: 1, headDim: 2, window: 0 }], 400),
    ...{ kvDtype: "float32", maxLogprobs: 20, planBlocks: () => 150, ...options },
  });
}

export function toyJoin(slot: number, tokens: readonly number[], fields: Partial<SlotJoin> = {}): SlotJoin {
  const sampling = toySampling();
  return {
    ...{ slot, tokens: Int32Array.from(tokens), promptLength: tokens.length, numComputedTokens: 0, sampling },
    ...fields,
  };
}

/** A batch of rows, those of one token first, in which joining slots get blocks of their own. */
export function toyBatch(rows: readonly ScheduledRow[], joins: readonly SlotJoin[] = []): ScheduledBatch {
  return {
    ...{ joins, rows, decodeRows: rows.filter(({ count }) => count === 1).length },
    blockTableUpdates: joins.flatMap(({ slot }) =>
      range(25).map((index) => ({ slot, group: 0, index, block: 25 * slot + index })),
    ),
    numTokens: rows.reduce((sum, { count }) => sum + count, 0),
  };
}
