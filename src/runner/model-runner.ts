import type { Backend, KvScales, Readback } from "../backend/backend.ts";
import { rowWords } from "../backend/row-words.ts";
import type { Tensor } from "../backend/tensor.ts";
import { Workspace } from "../backend/workspace.ts";
import type { KvDType } from "../base/dtype.ts";
import { DeviceError, EngineDeadError, invariant, messageOf } from "../base/errors.ts";
import { tokensInPool } from "../base/kv-group.ts";
import type { CausalLM } from "../models/model.ts";
import { BatchState } from "./batch-state.ts";
import { type DrawKind, decodeBuckets, GraphRunner, promptBuckets, type StepGraph } from "./graph-runner.ts";
import { KvCache } from "./kv-cache.ts";
import type { KvLayout, LayoutGroup } from "./kv-layout.ts";
import { enqueueLogprobs, logprobWords } from "./logprob-reader.ts";
import { Mailbox } from "./mailbox.ts";
import { type PendingLogprobs, type PendingStep, readStep } from "./pending-step.ts";
import { LOGITS_CHUNK, type PendingPromptRow, PromptReader } from "./prompt-reader.ts";
import { StatePool, snapshotInterval } from "./state-pool.ts";
import {
  extentsOf,
  inboxWords,
  type StepBucket,
  StepBuffers,
  type StepExtents,
  type StepRow,
  type StepTensors,
  writeBlocks,
  writeRows,
} from "./step-buffers.ts";
import { StepOps } from "./step-ops.ts";
import type { RowMask, Runner, ScheduledBatch, ScheduledRow, SlotStates, StepResult } from "./types.ts";

export interface ModelRunnerOptions {
  readonly maxNumSeqs: number;
  /** Room that each slot has; the runner's own `maxModelLen` is less when the pool holds less. */
  readonly maxModelLen: number;
  readonly maxNumBatchedTokens: number;
  readonly blockSize: number;
  readonly layout: KvLayout;
  /** Dtype of keys and values. */
  readonly kvDtype: KvDType;
  /** Of each layer, where keys and values are cached in eight bits. Default: 1. */
  readonly kvScales?: readonly KvScales[] | undefined;
  /** Most top tokens that a row asks log-probabilities of; −1: no limit. */
  readonly maxLogprobs: number;
  /** Places for snapshots of sequences' states, where the model keeps any. Default 0. */
  readonly numSnapshots?: number;
  /** Do not capture graphs even if the backend can. */
  readonly enforceEager: boolean;
  /** Decides the size of the KV pool, in blocks, once everything else is allocated. */
  readonly planBlocks: () => number;
}

/** A step of which all is enqueued that comes before its tokens are drawn. */
interface BegunStep {
  readonly rows: readonly ScheduledRow[];
  readonly extents: StepExtents;
  readonly kind: DrawKind;
  readonly graph: StepGraph | undefined;
  /** Without a graph. */
  readonly hidden: Tensor | undefined;
  readonly prompt: readonly PendingPromptRow[];
}

/** Rows of a step that may take other kernels than one of many, with memory of their own. */
const FEW_ROWS = 8;

/** Words of log-probabilities that the mailbox has room for, for each row: those of 20 top tokens, vLLM's limit. */
const LOGPROB_WORDS = logprobWords({ count: 1, topCount: 20 });

/** Runs scheduled batches through a model on one backend. */
export class ModelRunner implements Runner {
  readonly numBlocks: number;
  readonly blockSize: number;
  readonly maxNumSeqs: number;
  readonly maxModelLen: number;
  readonly groups: readonly LayoutGroup[];
  readonly states: SlotStates | undefined;
  readonly vocabSize: number;
  readonly maxDrafts = 0;
  readonly maxInFlight = 2;
  readonly #workspace: Workspace;
  readonly #state: BatchState;
  readonly #states: StatePool | undefined;
  readonly #buffers: StepBuffers;
  readonly #mailbox: Mailbox;
  readonly #ops: StepOps;
  readonly #maxRows: number;
  readonly #prompts: PromptReader;
  readonly #graphs: GraphRunner | undefined;
  readonly #pending: PendingStep[] = [];
  /** The step that was launched last, while its masks have not come. */
  #begun: BegunStep | undefined;
  /** For `writeBlocks`. */
  readonly #rowOfSlot: Int32Array;
  /** Copies to the host of the step that was launched last. */
  #copies: Readback[] = [];
  #cache: KvCache;
  #disposed = false;

  /** Allocates batch state, measures what a full step takes, gives the rest to the KV pool, and captures graphs. */
  constructor(
    private readonly backend: Backend,
    model: CausalLM,
    options: ModelRunnerOptions,
  ) {
    const { config } = model;
    const { blockSize, maxNumSeqs, maxNumBatchedTokens } = options;
    this.blockSize = blockSize;
    this.maxNumSeqs = maxNumSeqs;
    this.maxModelLen = options.maxModelLen;
    this.vocabSize = config.vocabSize;
    this.groups = options.layout.groups;
    const numGroups = this.groups.length;
    this.#workspace = new Workspace(backend);
    const { vocabSize } = config;
    this.#state = new BatchState(backend, this.#workspace, { ...options, groups: this.groups, vocabSize });
    const { stateShape } = model;
    const { numSnapshots = 0 } = options;
    this.states = stateShape && { numSnapshots, snapshotInterval: snapshotInterval(blockSize) };
    this.#states = stateShape && new StatePool(backend, stateShape, maxNumSeqs, numSnapshots);
    const maxRows = Math.min(maxNumSeqs, maxNumBatchedTokens);
    const maxLogits = Math.max(maxRows, LOGITS_CHUNK);
    this.#maxRows = maxRows;
    this.#rowOfSlot = new Int32Array(maxNumSeqs);
    this.#buffers = new StepBuffers(backend, this.#state.slots, {
      ...{ maxTokens: maxNumBatchedTokens, maxRows, maxLogits, vocabSize, blockSize, numGroups },
    });
    this.#mailbox = new Mailbox(backend, {
      ...{ depth: this.maxInFlight, inbox: inboxWords({ maxRows, numGroups }), tokens: maxRows },
      logprobs: maxRows * LOGPROB_WORDS,
    });
    const [workspace, state, mailbox] = [this.#workspace, this.#state, this.#mailbox];
    const stateCaches = this.#states?.layers ?? [];
    this.#ops = new StepOps({ backend, model, workspace, state, mailbox, stateCaches });
    this.#prompts = new PromptReader(
      backend,
      this.#workspace,
      {
        logits: (hidden, indices) => this.#ops.logits(this.#buffers.logits(indices.dim(0)), hidden, indices),
        states: (hidden, indices) => this.#ops.states(hidden, indices),
      },
      this.#readback.bind(this),
    );

    const shape = { layout: options.layout, blockSize, kvDtype: options.kvDtype };
    const captures = backend.capture !== undefined && !options.enforceEager;
    const limits = { maxRows, maxTokens: maxNumBatchedTokens };
    const rehearse = (run: () => void) => (backend.rehearse ? backend.rehearse(run) : run());
    if (backend.memory) {
      this.#cache = new KvCache(backend, shape, 0, options.kvScales);
      const topCount = options.maxLogprobs < 0 ? config.vocabSize : options.maxLogprobs;
      const padded = captures ? promptBuckets(maxNumBatchedTokens) : [];
      rehearse(() =>
        this.#warmUp(maxNumBatchedTokens, Math.max(0, ...padded), Math.min(topCount, config.vocabSize)),
      );
      // Eager steps, too, so that they compute what captured ones of as many rows do.
      backend.tuneLinear?.([...decodeBuckets(maxRows), maxNumBatchedTokens]);
      this.#cache.dispose();
    }
    this.numBlocks = options.planBlocks();
    const fits = tokensInPool(this.groups, this.numBlocks, this.blockSize);
    this.maxModelLen = Math.min(options.maxModelLen, fits);
    this.#cache = new KvCache(backend, shape, this.numBlocks, options.kvScales);
    if (backend.memory) rehearse(() => this.#greetCache(maxNumBatchedTokens));
    if (captures) {
      const { capturesEverySize } = backend;
      if (!capturesEverySize) this.#workspace.freeze();
      this.#graphs = new GraphRunner(limits, (...step) => this.#capture(...step), capturesEverySize);
    }
  }

  /** @throws EngineDeadError when the device is lost; any other error is this step's alone. */
  launch(step: ScheduledBatch): void {
    invariant(this.#pending.length < this.maxInFlight, "too many steps in flight");
    invariant(this.#begun === undefined, "the step before has not been drawn");
    this.#copies = [];
    this.#orGiveUp(() => {
      const begun = this.#begin(step);
      if (begun.kind === "masked") this.#begun = begun;
      else this.#finish(begun);
    });
  }

  /** @throws as `launch` */
  draw(masks: readonly RowMask[]): void {
    const begun = this.#begun;
    invariant(begun !== undefined, "no step waits for masks");
    this.#begun = undefined;
    this.#orGiveUp(() => {
      for (const mask of masks) this.#state.allow(begun.rows[mask.row]!.slot, mask);
      this.#finish(begun);
    });
  }

  /** @throws EngineDeadError when the device is lost; any other error is this step's alone. */
  collect(): StepResult {
    const step = this.#pending.shift();
    invariant(step !== undefined, "no step in flight");
    return unlessLost(() => {
      try {
        step.done.wait();
      } catch (error) {
        this.#mailbox.take();
        throw error;
      }
      return readStep(step, this.#mailbox.take());
    });
  }

  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.backend.leaveRanks?.();
    this.#graphs?.dispose();
    this.#mailbox.dispose();
    this.#buffers.dispose();
    this.#state.dispose();
    this.#cache.dispose();
    this.#states?.dispose();
    this.#workspace.dispose();
  }

  #orGiveUp(run: () => void): void {
    try {
      unlessLost(run);
    } catch (error) {
      if (!(error instanceof EngineDeadError)) this.#giveUp();
      throw error;
    }
  }

  /** Enqueues a step: all of it, unless masks are to come before tokens are drawn. */
  #begin(step: ScheduledBatch): BegunStep {
    const { rows, decodeRows, joins, blockTableUpdates, snapshots = [] } = step;
    const bucket = isCapturable(step)
      ? this.#graphs?.bucketFor(decodeRows, step.numTokens - decodeRows)
      : undefined;
    const words = this.#mailbox.draft();
    let extents: StepExtents;
    const numGroups = this.groups.length;
    if (bucket === undefined) extents = writeRows(words, rows, decodeRows, numGroups);
    else {
      extents = extentsOf(bucket);
      const padding = this.#state.padding(extents.numRows - rows.length);
      writeRows(words, [...rows, ...padding], decodeRows, numGroups);
    }
    for (const join of joins) {
      this.#prompts.join(join);
      if (join.snapshot !== undefined) this.#states!.restore(join.slot, join.snapshot);
    }
    this.#state.apply({
      joins,
      blockTableUpdates: writeBlocks(words, rows, blockTableUpdates, this.#rowOfSlot, this.groups),
    });
    const asksLogits = ({ sample, slot, logprobs }: ScheduledRow) =>
      sample && (logprobs !== undefined || !this.#state.isPlain(slot));
    const isMasked = rows.some(({ masked }) => masked);
    const kind = isMasked ? "masked" : rows.some(asksLogits) ? "full" : "plain";
    const graph = bucket && this.#graphs!.find(bucket, kind);
    const keep = () => {
      for (const { slot, snapshot } of snapshots) this.#states!.keep(slot, snapshot);
    };
    if (graph) {
      graph.begin.launch();
      keep();
      return { rows, extents, kind, graph, hidden: undefined, prompt: [] };
    }
    const hidden = this.#ops.forward(this.#buffers.view(extents), this.#cache);
    keep();
    return { rows, extents, kind, graph, hidden, prompt: this.#prompts.enqueue(rows, hidden) };
  }

  /** Enqueues what is left of a step, and sends it. */
  #finish({ rows, extents, kind, graph, hidden, prompt }: BegunStep): void {
    if (graph) graph.draw?.launch();
    else this.#draw(this.#buffers.view(extents), hidden!, kind);
    const logprobs = kind === "plain" ? undefined : this.#enqueueLogprobs(rows, extents);
    const numSamples = rows.reduce((count, { sample }) => count + Number(sample), 0);
    this.#pending.push({ rows, numSamples, done: this.backend.fence(), logprobs, prompt });
    this.#mailbox.send();
  }

  #draw(step: StepTensors, hidden: Tensor, kind: DrawKind): void {
    if (step.sampled.size === 0) return;
    if (kind === "plain") this.#ops.drawPlain(step, hidden);
    else this.#ops.draw(step, hidden);
  }

  /** Log-probabilities of the samples that ask for them, from the logits that drawing has left. */
  #enqueueLogprobs(rows: readonly ScheduledRow[], extents: StepExtents): PendingLogprobs | undefined {
    const sampled = rows.filter(({ sample }) => sample);
    const wanted = sampled.flatMap(({ logprobs }, i) => (logprobs === undefined ? [] : [i]));
    if (wanted.length === 0) return undefined;
    const start = rowWords(this.groups.length) * this.#maxRows;
    this.#mailbox.draft().set(wanted, start);
    const { logits, sampled: tokens } = this.#buffers.view(extents);
    const { words, ...values } = enqueueLogprobs(
      this.backend,
      this.#workspace,
      logits,
      tokens,
      this.#mailbox.draftTensor(start, wanted.length),
      Math.max(...wanted.map((i) => sampled[i]!.logprobs!)),
    );
    if (words.size > this.#mailbox.logprobs.areas.dim(1)) return { ...values, copy: this.#readback(words) };
    this.backend.post(this.#mailbox.logprobs, words);
    return { ...values, copy: undefined };
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

  /** A step from the records of its rows to the drawn tokens: in one graph, or in two with masks in between. */
  #capture(bucket: StepBucket, kind: DrawKind): StepGraph {
    const { backend } = this;
    const step = this.#buffers.view(extentsOf(bucket));
    const { moves } = this.#workspace;
    let hidden: Tensor | undefined;
    const begin = backend.capture!(() => {
      hidden = this.#ops.forward(step, this.#cache);
      if (kind !== "masked") this.#draw(step, hidden, kind);
    });
    const draw = kind === "masked" ? backend.capture!(() => this.#draw(step, hidden!, kind)) : undefined;
    const isStale = () =>
      moves !== this.#workspace.moves || begin.isStale?.() === true || draw?.isStale?.() === true;
    return { begin, draw, isStale };
  }

  /**
   * Runs the largest of everything that a step can be asked for, on the scratch block, so that all memory is allocated before
   * the KV pool takes the rest. Prompt tokens are in as many rows as possible, where attention takes least.
   * @param padded tokens that a captured step of a prompt has at most, be its sequence as short as it may.
   */
  #warmUp(maxTokens: number, padded: number, topCount: number): void {
    const { backend } = this;
    const maxRows = this.#maxRows;
    const padding = this.#state.padding(maxRows);
    const prompts: StepRow[] = [];
    for (let left = maxTokens; left > 0 && prompts.length < maxRows; ) {
      const count = Math.min(Math.ceil(left / (maxRows - prompts.length)), this.maxModelLen);
      prompts.push({ ...padding[0]!, count, sample: false });
      left -= count;
    }
    const hidden = this.#ops.forward(this.#rehearse(prompts, 0, padded), this.#cache);
    const asked = Math.max(maxRows, LOGITS_CHUNK);
    const zeros = backend.empty("int32", [asked]);
    backend.fill(zeros, 0);
    const logits = this.#ops.logits(this.#buffers.logits(asked), hidden, zeros);
    enqueueLogprobs(backend, this.#workspace, logits, zeros, undefined, topCount);
    this.#ops.states(hidden, zeros.rows(0, LOGITS_CHUNK));
    this.#prompts.reserve();
    this.#state.reserve();
    for (const rows of new Set([maxRows, Math.min(FEW_ROWS, maxRows), 1])) {
      const step = this.#rehearse(padding.slice(0, rows), rows);
      const states = this.#ops.forward(step, this.#cache);
      this.#ops.drawPlain(step, states);
      this.#ops.draw(step, states);
    }
    this.#mailbox.recall();
    zeros.buffer.dispose();
  }

  /** Runs a small step of each kind of row on the new pool, so that backends make ready what they keep of each layer. */
  #greetCache(maxTokens: number): void {
    const [row] = this.#state.padding(1);
    const count = Math.min(2, maxTokens, this.maxModelLen);
    this.#ops.forward(this.#rehearse([row!], 1), this.#cache);
    this.#ops.forward(this.#rehearse([{ ...row!, count }], 0), this.#cache);
    this.#mailbox.recall();
  }

  /** The buffers of a step that will not be sent, of at least so many tokens. */
  #rehearse(rows: readonly StepRow[], decodeRows: number, leastTokens = 0): StepTensors {
    this.#mailbox.recall();
    const extents = writeRows(this.#mailbox.draft(), rows, decodeRows, this.groups.length);
    return this.#buffers.view({ ...extents, numTokens: Math.max(extents.numTokens, leastTokens) });
  }
}

/** Draws a token for each row, as captured steps do, has one prompt at most, and asks for nothing of it. */
function isCapturable({ rows, decodeRows }: ScheduledBatch): boolean {
  const draws = ({ sample, promptLogprobs, logits }: ScheduledRow) =>
    sample && promptLogprobs === undefined && !logits;
  return rows.length - decodeRows <= 1 && rows.every(draws);
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
