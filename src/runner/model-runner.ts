import type { Backend, Fence, Readback } from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import { Workspace } from "../backend/workspace.ts";
import type { FloatDType } from "../base/dtype.ts";
import { DeviceError, EngineDeadError, invariant, messageOf } from "../base/errors.ts";
import type { CausalLM } from "../models/model.ts";
import { BatchState } from "./batch-state.ts";
import { type DrawKind, decodeBuckets, GraphRunner } from "./graph-runner.ts";
import { KvCache } from "./kv-cache.ts";
import { enqueueLogprobs, type PendingLogprobs, readLogprobs, sliceLogprobs } from "./logprob-reader.ts";
import { Mailbox } from "./mailbox.ts";
import { LOGITS_CHUNK, type PendingPromptRow, PromptReader, readPromptRows } from "./prompt-reader.ts";
import {
  inboxWords,
  StepBuffers,
  type StepExtents,
  type StepRow,
  type StepTensors,
  writeBlocks,
  writeRows,
} from "./step-buffers.ts";
import type { LogprobRows, Runner, ScheduledBatch, ScheduledRow, StepResult } from "./types.ts";

export interface ModelRunnerOptions {
  readonly maxNumSeqs: number;
  /** Room that each slot has; the runner's own `maxModelLen` is less when the pool holds less. */
  readonly maxModelLen: number;
  readonly maxNumBatchedTokens: number;
  readonly blockSize: number;
  /** Dtype of keys and values. */
  readonly kvDtype: FloatDType;
  /** Do not capture graphs even if the backend can. */
  readonly enforceEager: boolean;
  /** Decides the size of the KV pool, in blocks, once everything else is allocated. */
  readonly planBlocks: () => number;
}

/** A launched step. The tokens that it draws are its answer in the mailbox. */
interface PendingStep {
  readonly rows: readonly ScheduledRow[];
  readonly numSamples: number;
  readonly done: Fence;
  /** On their way to the host. */
  readonly logprobs: PendingLogprobs | undefined;
  readonly prompt: readonly PendingPromptRow[];
}

/** Runs scheduled batches through a model on one backend. */
export class ModelRunner implements Runner {
  readonly numBlocks: number;
  readonly blockSize: number;
  readonly maxNumSeqs: number;
  readonly maxModelLen: number;
  readonly vocabSize: number;
  readonly maxDrafts = 0;
  readonly maxInFlight = 2;
  readonly #workspace: Workspace;
  readonly #state: BatchState;
  readonly #buffers: StepBuffers;
  readonly #mailbox: Mailbox;
  readonly #prompts: PromptReader;
  readonly #graphs: GraphRunner | undefined;
  readonly #pending: PendingStep[] = [];
  /** Copies to the host of the step that was launched last. */
  #copies: Readback[] = [];
  #cache: KvCache;
  #disposed = false;

  /** Allocates batch state, measures what a full step takes, gives the rest to the KV pool, and captures graphs. */
  constructor(
    private readonly backend: Backend,
    private readonly model: CausalLM,
    options: ModelRunnerOptions,
  ) {
    const { config } = model;
    const { blockSize, maxNumSeqs, maxNumBatchedTokens } = options;
    this.blockSize = blockSize;
    this.maxNumSeqs = maxNumSeqs;
    this.maxModelLen = options.maxModelLen;
    this.vocabSize = config.vocabSize;
    this.#workspace = new Workspace(backend);
    this.#state = new BatchState(backend, this.#workspace, { ...options, vocabSize: config.vocabSize });
    const maxRows = Math.min(maxNumSeqs, maxNumBatchedTokens);
    const maxLogits = Math.max(maxRows, LOGITS_CHUNK);
    const limits = {
      maxTokens: maxNumBatchedTokens,
      maxRows,
      maxLogits,
      vocabSize: config.vocabSize,
      blockSize,
    };
    this.#buffers = new StepBuffers(backend, this.#state.slots, limits);
    this.#mailbox = new Mailbox(backend, {
      ...{ depth: this.maxInFlight, inboxWords: inboxWords(limits), outboxWords: maxRows },
    });
    this.#prompts = new PromptReader(
      backend,
      this.#workspace,
      (hidden, indices) => this.#logits(this.#buffers.logits(indices.dim(0)), hidden, indices),
      this.#readback.bind(this),
    );

    const shape = { ...model.kvHeads, blockSize, kvDtype: options.kvDtype };
    if (backend.memory) {
      this.#cache = new KvCache(backend, shape, 0);
      this.#warmUp(maxNumBatchedTokens, maxRows, maxLogits);
      this.#cache.dispose();
    }
    this.numBlocks = options.planBlocks();
    this.maxModelLen = Math.min(options.maxModelLen, this.numBlocks * this.blockSize);
    this.#cache = new KvCache(backend, shape, this.numBlocks);
    if (backend.capture && !options.enforceEager) {
      const buckets = decodeBuckets(maxRows);
      backend.tuneLinear?.(buckets);
      this.#workspace.freeze();
      this.#graphs = new GraphRunner(buckets, (...shape) => this.#captureDecode(...shape));
    }
  }

  /** @throws EngineDeadError when the device is lost; any other error is this step's alone. */
  launch(step: ScheduledBatch): void {
    invariant(this.#pending.length < this.maxInFlight, "too many steps in flight");
    this.#copies = [];
    try {
      this.#pending.push(unlessLost(() => this.#launch(step)));
    } catch (error) {
      if (!(error instanceof EngineDeadError)) this.#giveUp();
      throw error;
    }
    this.#mailbox.send();
  }

  /** @throws EngineDeadError when the device is lost; any other error is this step's alone. */
  collect(): StepResult {
    const step = this.#pending.shift();
    invariant(step !== undefined, "no step in flight");
    return unlessLost(() => {
      try {
        step.done.wait();
      } catch (error) {
        this.#mailbox.take(0);
        throw error;
      }
      return readStep(step, this.#mailbox.take(step.numSamples));
    });
  }

  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#graphs?.dispose();
    this.#mailbox.dispose();
    this.#buffers.dispose();
    this.#state.dispose();
    this.#cache.dispose();
    this.#workspace.dispose();
  }

  #launch(step: ScheduledBatch): PendingStep {
    const { rows, decodeRows, joins, blockTableUpdates } = step;
    const bucket = isDecode(step) ? this.#graphs?.bucketFor(rows.length) : undefined;
    const words = this.#mailbox.draft();
    const extents =
      bucket === undefined
        ? writeRows(words, rows, decodeRows)
        : writeRows(words, [...rows, ...this.#state.padding(bucket - rows.length)], bucket);
    for (const join of joins) this.#prompts.join(join);
    this.#state.apply({ joins, blockTableUpdates: writeBlocks(words, rows, blockTableUpdates) });
    const plain = rows.every(({ sample, slot }) => !sample || this.#state.isPlain(slot));
    if (bucket === undefined) return this.#launchEager(rows, extents, plain);
    this.#graphs!.launch(bucket, plain ? "plain" : "full");
    return { rows, numSamples: rows.length, done: this.backend.fence(), logprobs: undefined, prompt: [] };
  }

  /** `plain`: all samples are of slots that need no logits. */
  #launchEager(rows: readonly ScheduledRow[], extents: StepExtents, plain: boolean): PendingStep {
    const { numSamples } = extents;
    const step = this.#buffers.view(extents);
    const hidden = this.#forward(step);
    const prompt = this.#prompts.enqueue(rows, hidden);
    const logprobs = numSamples > 0 ? this.#enqueueSamples(step, rows, hidden, plain) : undefined;
    return { rows, numSamples, done: this.backend.fence(), logprobs, prompt };
  }

  /** Draws and posts a token for each sample, of which there are some. */
  #enqueueSamples(
    step: StepTensors,
    rows: readonly ScheduledRow[],
    hidden: Tensor,
    plain: boolean,
  ): PendingLogprobs | undefined {
    const sampled = rows.filter(({ sample }) => sample);
    const wanted = sampled.flatMap(({ logprobs }, i) => (logprobs === undefined ? [] : [i]));
    const { logits, sampled: tokens } = step;
    if (wanted.length === 0) {
      if (plain) this.#drawPlain(step, hidden);
      else this.#draw(step, hidden, logits);
      return undefined;
    }
    // Log-probabilities are those of the unprocessed logits, which processing in place would lose.
    this.#draw(step, hidden, plain ? logits : this.#workspace.tensor("processed", "float32", logits.shape));
    const asked = this.#workspace.tensor("logprobRows", "int32", [wanted.length]);
    this.backend.upload(asked, Int32Array.from(wanted));
    const topCount = Math.max(...wanted.map((i) => sampled[i]!.logprobs!));
    const copy = this.#readback.bind(this);
    return enqueueLogprobs(this.backend, this.#workspace, logits, tokens, asked, topCount, copy);
  }

  #readback(source: Tensor): Readback {
    const copy = this.backend.readback(source);
    this.#copies.push(copy);
    return copy;
  }

  /**
   * Forgets what a failed launch had enqueued. Nobody will wait for its copies, but backends get their memory back by waiting
   * alone. @throws EngineDeadError when that fails: host and device may not agree on the number of the next step.
   */
  #giveUp(): void {
    try {
      this.#mailbox.recall();
    } catch (error) {
      throw new EngineDeadError(`a failed step could not be undone: ${messageOf(error)}`, { cause: error });
    }
    for (const copy of this.#copies) {
      try {
        copy.wait();
      } catch {
        // The launch failed first: that is what is reported.
      }
    }
  }

  /** A whole decode step of `rows` rows: from their records to the drawn tokens. */
  #captureDecode(rows: number, kind: DrawKind) {
    const extents = { numTokens: rows, numRows: rows, decodeRows: rows, maxQueryLen: 1, numSamples: rows };
    const step = this.#buffers.view(extents);
    return this.backend.capture!(() => {
      const hidden = this.#forward(step);
      if (kind === "plain") this.#drawPlain(step, hidden);
      else this.#draw(step, hidden, step.logits);
    });
  }

  /** The residual stream [T, H] after the last layer; slots of the rows advance. */
  #forward({ batch, samples }: StepTensors): Tensor {
    const { backend } = this;
    backend.prepareBatch(batch, samples, this.#mailbox.inbox, this.#state.slots);
    return this.model.forward({ backend, workspace: this.#workspace, batch, kvCache: this.#cache.layers });
  }

  /** Draws and posts a token for each sample of the step, none of which needs logits. */
  #drawPlain(step: StepTensors, hidden: Tensor): void {
    const { samples, logits, sampled } = step;
    const { slots } = this.#state;
    this.model.drawTokens(this.backend, sampled, this.#sampledHidden(step, hidden), logits, samples, slots);
    this.backend.post(this.#mailbox.outbox, sampled);
  }

  /** Draws and posts a token for each sample of the step; `processed` float32 [N, V] may be the step's logits. */
  #draw(step: StepTensors, hidden: Tensor, processed: Tensor): void {
    const { samples, logits, sampled } = step;
    const { slots } = this.#state;
    this.model.logits(this.backend, logits, this.#sampledHidden(step, hidden));
    this.backend.processLogits(processed, logits, samples, slots);
    this.backend.sample(sampled, logits, processed, samples, slots);
    this.backend.post(this.#mailbox.outbox, sampled);
  }

  /** hidden[T, H] at the step's samples, [N, H]. Where every token is sampled after, they are in order. */
  #sampledHidden({ batch, samples, sampled }: StepTensors, hidden: Tensor): Tensor {
    return sampled.size === batch.numTokens ? hidden : this.#gather(hidden, samples.tokenIndices);
  }

  /** out float32 [N, V] = logits after the batch's tokens at indices[N]. */
  #logits(out: Tensor, hidden: Tensor, indices: Tensor): Tensor {
    this.model.logits(this.backend, out, this.#gather(hidden, indices));
    return out;
  }

  #gather(hidden: Tensor, indices: Tensor): Tensor {
    const gathered = this.#workspace.tensor("gathered", hidden.dtype, [indices.dim(0), hidden.dim(1)]);
    this.backend.gatherRows(gathered, hidden, indices);
    return gathered;
  }

  /**
   * Runs the largest step there can be, on the scratch block, so that every buffer has its final size. What only
   * log-probabilities need is left to the first step that asks for them.
   */
  #warmUp(maxTokens: number, maxRows: number, maxLogits: number): void {
    const { backend } = this;
    const decodes = this.#state.padding(maxRows);
    const prompts: StepRow[] = [];
    for (let left = maxTokens; left > 0 && prompts.length < maxRows; ) {
      const count = Math.min(left, this.maxModelLen);
      prompts.push({ ...decodes[0]!, count, sample: false });
      left -= count;
    }
    const hidden = this.#forward(this.#rehearse(prompts, 0));
    const indices = backend.empty("int32", [maxLogits]);
    backend.fill(indices, 0);
    this.#logits(this.#buffers.logits(maxLogits), hidden, indices);
    const step = this.#rehearse(decodes, maxRows);
    const states = this.#forward(step);
    this.#drawPlain(step, states);
    this.#draw(step, states, step.logits);
    this.#mailbox.recall();
    indices.buffer.dispose();
  }

  /** The buffers of a step that will not be sent. */
  #rehearse(rows: readonly StepRow[], decodeRows: number): StepTensors {
    this.#mailbox.recall();
    return this.#buffers.view(writeRows(this.#mailbox.draft(), rows, decodeRows));
  }
}

/** Only draws one token for each row: what captured graphs do. */
function isDecode({ rows, decodeRows }: ScheduledBatch): boolean {
  return (
    decodeRows === rows.length &&
    rows.every(
      ({ sample, logprobs, promptLogprobs, logits }) =>
        sample && logprobs === undefined && promptLogprobs === undefined && !logits,
    )
  );
}

/** The result of a step that drew `tokens`, one for each sampled row. Waits for the copies. */
function readStep({ rows, ...step }: PendingStep, tokens: Int32Array): StepResult {
  const offsets = new Int32Array(rows.length + 1);
  for (const [i, { sample }] of rows.entries()) offsets[i + 1] = offsets[i]! + Number(sample);
  const logprobs = new Map<number, LogprobRows>();
  if (step.logprobs !== undefined) {
    const asked = [...rows.keys()].filter((i) => rows[i]!.sample && rows[i]!.logprobs !== undefined);
    const all = readLogprobs(
      step.logprobs,
      Int32Array.from(asked, (i) => tokens[offsets[i]!]!),
    );
    for (const [at, i] of asked.entries())
      logprobs.set(i, sliceLogprobs(all, at, at + 1, rows[i]!.logprobs!));
  }
  return { tokens, offsets, logprobs, ...readPromptRows(step.prompt) };
}

function unlessLost<T>(run: () => T): T {
  try {
    return run();
  } catch (error) {
    if (error instanceof DeviceError && error.fatal)
      throw new EngineDeadError(`the device is lost: ${error.message}`, { cause: error });
    throw error;
  }
}
