import type { Backend, Readback } from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import { Workspace } from "../backend/workspace.ts";
import { invariant } from "../base/errors.ts";
import type { ForwardContext } from "../layers/layer.ts";
import type { CausalLM } from "../models/model.ts";
import { BatchState, type StagedSamples } from "./batch-state.ts";
import { KvCache } from "./kv-cache.ts";
import {
  asFloat32,
  asInt32,
  concatLogprobs,
  enqueueLogprobs,
  type PendingLogprobs,
  readLogprobs,
  sliceLogprobs,
} from "./logprob-reader.ts";
import type { LogprobRows, Runner, ScheduledBatch, ScheduledRow, StepResult } from "./types.ts";

export interface ModelRunnerOptions {
  readonly maxNumSeqs: number;
  readonly maxModelLen: number;
  readonly numBlocks: number;
  readonly blockSize: number;
}

/** A launched step: copies on their way to the host. */
interface PendingStep {
  readonly rows: readonly ScheduledRow[];
  readonly sampledRows: readonly number[];
  readonly tokens: Readback | undefined;
  readonly logprobs: PendingLogprobs | undefined;
  readonly prompt: readonly PendingPromptRow[];
}

/** What one row asked about its prompt positions, in chunks. */
interface PendingPromptRow {
  readonly row: number;
  readonly logprobs: readonly PendingLogprobs[];
  readonly logits: readonly Readback[];
}

/** Prompt positions whose logits are held at once. */
const LOGITS_CHUNK = 128;

/** Runs scheduled batches through a model on one backend. */
export class ModelRunner implements Runner {
  readonly numBlocks: number;
  readonly blockSize: number;
  readonly maxNumSeqs: number;
  readonly maxModelLen: number;
  readonly vocabSize: number;
  readonly maxInFlight = 2;
  readonly #workspace: Workspace;
  readonly #cache: KvCache;
  readonly #state: BatchState;
  readonly #pending: PendingStep[] = [];
  /** Host copies of the slots' prompts, for rows that want log-probabilities of prompt tokens. */
  readonly #prompts = new Map<number, Int32Array>();
  #disposed = false;

  constructor(
    private readonly backend: Backend,
    private readonly model: CausalLM,
    options: ModelRunnerOptions,
  ) {
    const { config } = model;
    this.numBlocks = options.numBlocks;
    this.blockSize = options.blockSize;
    this.maxNumSeqs = options.maxNumSeqs;
    this.maxModelLen = options.maxModelLen;
    this.vocabSize = config.vocabSize;
    this.#workspace = new Workspace(backend);
    this.#cache = new KvCache(backend, { ...config, blockSize: options.blockSize }, options.numBlocks);
    const shape = { ...options, vocabSize: config.vocabSize };
    this.#state = new BatchState(backend, this.#workspace, shape, this.#cache.scratchBlock);
  }

  launch(step: ScheduledBatch): void {
    invariant(this.#pending.length < this.maxInFlight, "too many steps in flight");
    for (const { slot, tokens, promptLength } of step.joins)
      this.#prompts.set(slot, tokens.subarray(0, promptLength));
    const { batch, sample } = this.#state.stage(step);
    const context: ForwardContext = {
      backend: this.backend,
      workspace: this.#workspace,
      batch,
      kvCache: this.#cache.layers,
    };
    const hidden = this.model.forward(context);
    const prompt = this.#promptRows(step.rows, hidden);
    const sampled = sample && this.#sample(step.rows, hidden, sample);
    this.#pending.push({
      rows: step.rows,
      sampledRows: sample?.rows ?? [],
      tokens: sampled?.tokens,
      logprobs: sampled?.logprobs,
      prompt,
    });
  }

  collect(): StepResult {
    const step = this.#pending.shift();
    invariant(step !== undefined, "no step in flight");
    const tokens = new Int32Array(step.rows.length);
    const logprobs = new Map<number, LogprobRows>();
    if (step.tokens) {
      const drawn = asInt32(step.tokens.wait());
      const all = step.logprobs && readLogprobs(step.logprobs);
      for (const [i, row] of step.sampledRows.entries()) {
        tokens[row] = drawn[i]!;
        const topCount = step.rows[row]!.logprobs;
        if (all && topCount !== undefined) logprobs.set(row, sliceLogprobs(all, i, i + 1, topCount));
      }
    }
    const promptLogprobs = new Map<number, LogprobRows>();
    const logits = new Map<number, Float32Array>();
    for (const pending of step.prompt) {
      if (pending.logprobs.length > 0)
        promptLogprobs.set(pending.row, concatLogprobs(pending.logprobs.map(readLogprobs)));
      if (pending.logits.length > 0)
        logits.set(pending.row, concat(pending.logits.map((chunk) => asFloat32(chunk.wait()))));
    }
    return { tokens, logprobs, promptLogprobs, logits };
  }

  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#state.dispose();
    this.#cache.dispose();
    this.#workspace.dispose();
  }

  #sample(rows: readonly ScheduledRow[], hidden: Tensor, sample: StagedSamples) {
    const count = sample.rows.length;
    // Log-probabilities are those of the unprocessed logits, which processing in place would lose.
    const topCount = sample.rows.reduce((most, row) => Math.max(most, rows[row]!.logprobs ?? -1), -1);
    const logits = this.#logits(hidden, sample.tokenIndices);
    const processed =
      topCount >= 0 ? this.#workspace.tensor("processed", "float32", [count, this.vocabSize]) : logits;
    this.backend.processLogits(processed, logits, sample, this.#state.slots);
    const tokens = this.#workspace.tensor("sampled", "int32", [count]);
    this.backend.sample(tokens, processed, sample, this.#state.slots);
    return {
      tokens: this.backend.readback(tokens),
      logprobs:
        topCount >= 0 ? enqueueLogprobs(this.backend, this.#workspace, logits, tokens, topCount) : undefined,
    };
  }

  /** Logits float32 [R, V] of the batch's tokens at indices[R]. */
  #logits(hidden: Tensor, indices: Tensor): Tensor {
    const count = indices.dim(0);
    const gathered = this.#workspace.tensor("gathered", hidden.dtype, [count, hidden.dim(1)]);
    this.backend.gatherRows(gathered, hidden, indices);
    const logits = this.#workspace.tensor("logits", "float32", [count, this.vocabSize]);
    this.model.logits(this.backend, logits, gathered);
    return logits;
  }

  #promptRows(rows: readonly ScheduledRow[], hidden: Tensor): PendingPromptRow[] {
    const pending: PendingPromptRow[] = [];
    let firstToken = 0;
    for (const [row, scheduled] of rows.entries()) {
      if (scheduled.promptLogprobs !== undefined || scheduled.logits)
        pending.push(this.#promptRow(row, scheduled, hidden, firstToken));
      firstToken += scheduled.count;
    }
    return pending;
  }

  #promptRow(row: number, scheduled: ScheduledRow, hidden: Tensor, firstToken: number): PendingPromptRow {
    const { start, count, slot, promptLogprobs } = scheduled;
    const prompt = this.#prompts.get(slot);
    invariant(prompt !== undefined, `slot ${slot} never joined`);
    const logprobs: PendingLogprobs[] = [];
    const logits: Readback[] = [];
    for (let offset = 0; offset < count; offset += LOGITS_CHUNK) {
      const length = Math.min(LOGITS_CHUNK, count - offset);
      const indices = this.#upload("promptIndices", range(firstToken + offset, length));
      const chunk = this.#logits(hidden, indices);
      if (scheduled.logits) logits.push(this.backend.readback(chunk));
      // The last position of the prompt predicts no prompt token.
      const predicted = Math.min(length, prompt.length - 1 - (start + offset));
      if (promptLogprobs === undefined || predicted <= 0) continue;
      const next = this.#upload(
        "promptTokens",
        prompt.slice(start + offset + 1, start + offset + 1 + predicted),
      );
      logprobs.push(
        enqueueLogprobs(this.backend, this.#workspace, chunk.rows(0, predicted), next, promptLogprobs),
      );
    }
    return { row, logprobs, logits };
  }

  #upload(name: string, values: Int32Array): Tensor {
    const tensor = this.#workspace.tensor(name, "int32", [values.length]);
    this.backend.upload(tensor, values);
    return tensor;
  }
}

function range(start: number, length: number): Int32Array {
  return Int32Array.from({ length }, (_, i) => start + i);
}

function concat(parts: readonly Float32Array[]): Float32Array {
  const out = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let offset = 0;
  for (const part of parts) {
    out.set(part, offset);
    offset += part.length;
  }
  return out;
}
