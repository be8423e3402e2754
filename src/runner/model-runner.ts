import type { Backend, BatchTensors, Readback, SampleRows } from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import { Workspace } from "../backend/workspace.ts";
import { DeviceError, EngineDeadError, invariant } from "../base/errors.ts";
import type { CausalLM } from "../models/model.ts";
import { BatchState, type RowSpan, type StagedRows } from "./batch-state.ts";
import { decodeBuckets, GraphRunner } from "./graph-runner.ts";
import { KvCache } from "./kv-cache.ts";
import {
  asInt32,
  enqueueLogprobs,
  type PendingLogprobs,
  readLogprobs,
  sliceLogprobs,
} from "./logprob-reader.ts";
import { LOGITS_CHUNK, type PendingPromptRow, PromptReader, readPromptRows } from "./prompt-reader.ts";
import type { LogprobRows, Runner, ScheduledBatch, ScheduledRow, StepResult } from "./types.ts";

export interface ModelRunnerOptions {
  readonly maxNumSeqs: number;
  /** Room that each slot has; the runner's own `maxModelLen` is less when the pool holds less. */
  readonly maxModelLen: number;
  readonly maxNumBatchedTokens: number;
  readonly blockSize: number;
  /** Do not capture graphs even if the backend can. */
  readonly enforceEager: boolean;
  /** Decides the size of the KV pool, in blocks, once everything else is allocated. */
  readonly planBlocks: () => number;
}

/** A launched step: copies on their way to the host. */
interface PendingStep {
  readonly rows: readonly ScheduledRow[];
  /** Indices of the sampled rows, in the order of `tokens`. */
  readonly sampled: readonly number[];
  readonly tokens: Readback | undefined;
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
  readonly maxInFlight = 2;
  readonly #workspace: Workspace;
  readonly #state: BatchState;
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
    this.blockSize = options.blockSize;
    this.maxNumSeqs = options.maxNumSeqs;
    this.maxModelLen = options.maxModelLen;
    this.vocabSize = config.vocabSize;
    this.#workspace = new Workspace(backend);
    this.#state = new BatchState(backend, this.#workspace, { ...options, vocabSize: config.vocabSize });
    this.#prompts = new PromptReader(
      backend,
      this.#workspace,
      this.#logits.bind(this),
      this.#readback.bind(this),
    );

    const shape = { ...config, blockSize: options.blockSize };
    if (backend.memory) {
      this.#cache = new KvCache(backend, shape, 0);
      this.#warmUp(options.maxNumBatchedTokens);
      this.#cache.dispose();
    }
    this.numBlocks = options.planBlocks();
    this.maxModelLen = Math.min(options.maxModelLen, this.numBlocks * this.blockSize);
    this.#cache = new KvCache(backend, shape, this.numBlocks);
    if (backend.capture && !options.enforceEager) {
      const buckets = decodeBuckets(Math.min(options.maxNumSeqs, options.maxNumBatchedTokens));
      backend.tuneLinear?.(buckets);
      this.#workspace.freeze();
      this.#graphs = new GraphRunner(buckets, (rows) => this.#captureDecode(rows));
    }
  }

  /** @throws EngineDeadError when the device is lost; any other error is this step's alone. */
  launch(step: ScheduledBatch): void {
    invariant(this.#pending.length < this.maxInFlight, "too many steps in flight");
    this.#copies = [];
    try {
      this.#pending.push(unlessLost(() => this.#launch(step)));
    } catch (error) {
      if (!(error instanceof EngineDeadError)) this.#dropCopies();
      throw error;
    }
  }

  /** @throws EngineDeadError when the device is lost; any other error is this step's alone. */
  collect(): StepResult {
    const step = this.#pending.shift();
    invariant(step !== undefined, "no step in flight");
    return unlessLost(() => readStep(step));
  }

  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#graphs?.dispose();
    this.#state.dispose();
    this.#cache.dispose();
    this.#workspace.dispose();
  }

  #launch(step: ScheduledBatch): PendingStep {
    for (const join of step.joins) this.#prompts.join(join);
    this.#state.apply(step);
    const bucket = isPlainDecode(step) ? this.#graphs?.bucketFor(step.rows.length) : undefined;
    return bucket === undefined ? this.#launchEager(step) : this.#replay(step, bucket);
  }

  #launchEager({ rows, decodeRows }: ScheduledBatch): PendingStep {
    const hidden = this.#forward(this.#state.stageRows(rows, decodeRows));
    const prompt = this.#prompts.enqueue(rows, hidden);
    const sampled = rows.flatMap((row, i) => (row.sample ? [i] : []));
    if (sampled.length === 0) return { rows, sampled, tokens: undefined, logprobs: undefined, prompt };

    const samples = this.#state.stageSamples(rows, sampled);
    const logits = this.#logits(hidden, samples.tokenIndices);
    const topCount = sampled.reduce((most, row) => Math.max(most, rows[row]!.logprobs ?? -1), -1);
    // Log-probabilities are those of the unprocessed logits, which processing in place would lose.
    const processed = topCount >= 0 ? this.#workspace.tensor("processed", "float32", logits.shape) : logits;
    const tokens = this.#sample(processed, logits, samples);
    const logprobs =
      topCount >= 0
        ? enqueueLogprobs(this.backend, this.#workspace, logits, tokens, topCount, this.#readback.bind(this))
        : undefined;
    return { rows, sampled, tokens: this.#readback(tokens), logprobs, prompt };
  }

  #replay({ rows }: ScheduledBatch, bucket: number): PendingStep {
    const padding = Array.from({ length: bucket - rows.length }, () => this.#state.paddingRow);
    this.#state.stageRows([...rows, ...padding], bucket);
    this.#graphs!.launch(bucket);
    const tokens = this.#workspace.tensor("sampled", "int32", [rows.length]);
    const sampled = rows.map((_, i) => i);
    return { rows, sampled, tokens: this.#readback(tokens), logprobs: undefined, prompt: [] };
  }

  #readback(source: Tensor): Readback {
    const copy = this.backend.readback(source);
    this.#copies.push(copy);
    return copy;
  }

  /** Nobody will wait for what a failed launch had enqueued, but backends get a copy's memory back by waiting alone. */
  #dropCopies(): void {
    for (const copy of this.#copies) {
      try {
        copy.wait();
      } catch {
        // The launch failed first: that is what is reported.
      }
    }
  }

  /** A whole decode step of `rows` rows: from the staged rows to the drawn tokens in "sampled". */
  #captureDecode(rows: number) {
    const staged = this.#decodeRows(rows);
    return this.backend.capture!(() => this.#decode(staged));
  }

  #decodeRows(rows: number): StagedRows {
    return {
      rows: this.#workspace.tensor("rows", "int32", [rows, 3]),
      batch: this.#state.batchTensors({
        ...{ numTokens: rows, numRows: rows, decodeRows: rows, maxQueryLen: 1 },
        maxContextLen: this.maxModelLen,
      }),
    };
  }

  #decode(staged: StagedRows): void {
    const hidden = this.#forward(staged);
    const logits = this.#workspace.tensor("logits", "float32", [staged.batch.numRows, this.vocabSize]);
    this.model.logits(this.backend, logits, hidden);
    this.#sample(logits, logits, staged.batch);
  }

  #forward({ rows, batch }: StagedRows): Tensor {
    const { backend } = this;
    backend.prepareBatch(batch, rows, this.#state.slots);
    return this.model.forward({ backend, workspace: this.#workspace, batch, kvCache: this.#cache.layers });
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

  #sample(processed: Tensor, logits: Tensor, samples: SampleRows | BatchTensors): Tensor {
    const tokens = this.#workspace.tensor("sampled", "int32", [logits.dim(0)]);
    this.backend.processLogits(processed, logits, samples, this.#state.slots);
    this.backend.sample(tokens, processed, samples, this.#state.slots);
    return tokens;
  }

  /**
   * Runs the largest step there can be, on the scratch block, so that every buffer has its final size. What only
   * log-probabilities need is left to the first step that asks for them.
   */
  #warmUp(maxNumBatchedTokens: number): void {
    const { paddingRow } = this.#state;
    const rows: RowSpan[] = [];
    for (let left = maxNumBatchedTokens; left > 0 && rows.length < this.maxNumSeqs; ) {
      const count = Math.min(left, this.maxModelLen);
      rows.push({ ...paddingRow, count });
      left -= count;
    }
    const hidden = this.#forward(this.#state.stageRows(rows, 0));
    const sampled = Array.from({ length: Math.max(this.maxNumSeqs, LOGITS_CHUNK) }, () => 0);
    const samples = this.#state.stageSamples(rows, sampled);
    const logits = this.#logits(hidden, samples.tokenIndices);
    this.#sample(logits, logits, samples);
    this.#decode(this.#stagePadding());
    this.backend.synchronize();
  }

  #stagePadding(): StagedRows {
    const rows = Array.from({ length: this.maxNumSeqs }, () => this.#state.paddingRow);
    return this.#state.stageRows(rows, this.maxNumSeqs);
  }
}

/** Only draws one token for each row: what captured graphs do. */
function isPlainDecode({ rows, decodeRows }: ScheduledBatch): boolean {
  return (
    decodeRows === rows.length &&
    rows.every(
      ({ sample, logprobs, promptLogprobs, logits }) =>
        sample && logprobs === undefined && promptLogprobs === undefined && !logits,
    )
  );
}

/** Waits for the copies. */
function readStep(step: PendingStep): StepResult {
  const tokens = new Int32Array(step.rows.length);
  const logprobs = new Map<number, LogprobRows>();
  if (step.tokens) {
    const drawn = asInt32(step.tokens.wait());
    const all = step.logprobs && readLogprobs(step.logprobs);
    for (const [i, row] of step.sampled.entries()) {
      tokens[row] = drawn[i]!;
      const topCount = step.rows[row]!.logprobs;
      if (all && topCount !== undefined) logprobs.set(row, sliceLogprobs(all, i, i + 1, topCount));
    }
  }
  return { tokens, logprobs, ...readPromptRows(step.prompt) };
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
