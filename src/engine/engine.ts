import type { EngineStats } from "../base/engine-stats.ts";
import type { EngineView } from "../base/engine-view.ts";
import {
  EngineDeadError,
  InvalidRequestError,
  InvariantError,
  invariant,
  messageOf,
  NoTokenAllowedError,
  RequestFailedError,
} from "../base/errors.ts";
import { tokensInPool } from "../base/kv-group.ts";
import { NotDrawn } from "../base/not-drawn.ts";
import type { FinishReason } from "../base/outputs.ts";
import type { ScheduledRow, StepResult } from "../runner/types.ts";
import { BlockManager } from "./block-manager.ts";
import type { CacheConfig } from "./cache-config.ts";
import { Completion, positionLogprobs } from "./completion.ts";
import type { EngineDeps } from "./engine-deps.ts";
import { viewOf } from "./engine-view.ts";
import { MatchedSequences } from "./matched-sequences.ts";
import { Outbox } from "./outbox.ts";
import { type EngineRequest, type RequestLimits, slotSampling } from "./request.ts";
import { RequestState } from "./request-state.ts";
import { Scheduler } from "./scheduler.ts";
import { Sequence } from "./sequence.ts";
import type { ScheduledStep } from "./step-builder.ts";
import type { StepOutput } from "./step-output.ts";

interface Entry {
  readonly state: RequestState;
  readonly sequences: readonly Sequence[];
}

interface Owner {
  readonly state: RequestState;
  readonly completion: Completion;
}

/**
 * The steps: schedule → launch → collect → post-process. Requests come checked. Failures stay where they belong: a bad
 * row ends its completion, a failed step ends the completions in it, and a dead runner ends them all.
 */
export class Engine {
  /** For `checkRequest`. */
  readonly limits: RequestLimits;
  readonly cacheConfig: CacheConfig;
  readonly #deps: EngineDeps;
  readonly #blocks: BlockManager;
  readonly #scheduler: Scheduler;
  readonly #pipelineDepth: number;
  readonly #eosTokenIds: ReadonlySet<number>;
  readonly #decodeToken: (id: number) => string;
  readonly #requests = new Map<string, Entry>();
  readonly #owners = new WeakMap<Sequence, Owner>();
  /** Launched and not collected, oldest first. */
  readonly #inFlight: ScheduledStep[] = [];
  readonly #outbox = new Outbox();
  readonly #matched: MatchedSequences;
  #isBlocked = false;
  #failure: EngineDeadError | undefined;
  #nextOrdinal = 0;
  #numSteps = 0;
  #promptTokens = 0;
  #generationTokens = 0;

  constructor(deps: EngineDeps) {
    const { runner, maxNumBatchedTokens, eosTokenIds, batchInvariant } = deps;
    const { numBlocks, blockSize, maxModelLen, vocabSize, maxDrafts, groups, states } = runner;
    this.#deps = deps;
    const isCached = deps.enablePrefixCaching && states?.numSnapshots !== 0;
    const hasher = isCached ? deps.hasher : undefined;
    this.#blocks = new BlockManager(numBlocks, blockSize, hasher, states, groups.length);
    const maxNumSeqs = Math.min(deps.maxNumSeqs, runner.maxNumSeqs);
    const limits = { maxNumSeqs, maxNumBatchedTokens, maxDrafts, groups };
    this.#scheduler = new Scheduler(this.#blocks, { ...limits, batchInvariant: batchInvariant ?? false });
    this.cacheConfig = {
      ...{ blockSize, numBlocks },
      ...(groups.length > 1 && { numGroups: groups.length }),
      ...(states && { numStates: maxNumSeqs, numSnapshots: isCached ? states.numSnapshots : 0 }),
    };
    const poolTokens = Math.min(maxModelLen, tokensInPool(groups, numBlocks, blockSize));
    this.limits = { maxModelLen, poolTokens, vocabSize, eosTokenIds };
    this.#pipelineDepth = deps.overlap ? Math.min(2, runner.maxInFlight) : 1;
    this.#eosTokenIds = new Set(eosTokenIds);
    this.#matched = new MatchedSequences(deps.matchers, eosTokenIds, vocabSize);
    this.#decodeToken = (id) => deps.decodeToken?.(id) ?? "";
  }

  /** Something is left to do or to report: call `step` again. */
  get hasUnfinished(): boolean {
    const { waiting, running } = this.#scheduler;
    return waiting.size + running.size + this.#inFlight.length > 0 || !this.#outbox.isEmpty;
  }

  /** The last step found nothing to do but to wait for matchers. */
  get isBlocked(): boolean {
    return this.#isBlocked;
  }

  /** Resolves when some matcher may have been answered. */
  async unblocked(): Promise<void> {
    await this.#matched.changed();
  }

  /** Queues a request with all of its `n` completions. @throws EngineDeadError; InvariantError for an id in use. */
  add(request: EngineRequest): void {
    this.#assertAlive();
    const { id, sampling, promptTokenIds, maxTokens, logits, pooling, lockstep } = request;
    invariant(!this.#requests.has(id), `there is already a request ${id}`);
    const { createTextStream } = this.#deps;
    const hasText = createTextStream !== undefined && sampling.detokenize && !logits && pooling === undefined;
    const openTextStream = hasText ? () => createTextStream(promptTokenIds, sampling) : undefined;
    const eosTokenIds: ReadonlySet<number> = sampling.ignoreEos ? new Set() : this.#eosTokenIds;
    const init = { requestId: id, sampling, maxTokens, eosTokenIds, openTextStream };
    const completions = Array.from({ length: sampling.n }, (_, index) => new Completion({ ...init, index }));
    const state = new RequestState(request, completions, this.limits.vocabSize);
    const seed = sampling.seed ?? this.#deps.nextSeed();
    const sequences: Sequence[] = [];
    for (const completion of completions) {
      const { index } = completion;
      const sequence = new Sequence({
        ordinal: this.#nextOrdinal++,
        promptTokenIds,
        maxTokens,
        sampling: slotSampling(request, BigInt.asUintN(64, seed + BigInt(index))),
        logprobs: sampling.logprobs,
        promptLogprobs: index === 0 ? sampling.promptLogprobs : undefined,
        logits,
        states: pooling !== undefined,
        lockstep,
        matcher: this.#matched.open(request),
        salt: request.cacheSalt,
        leader: sequences[0],
      });
      sequences.push(sequence);
      this.#matched.add(sequence);
      this.#owners.set(sequence, { state, completion });
      this.#scheduler.add(sequence);
    }
    this.#requests.set(id, { state, sequences });
  }

  /** Ends a request's unfinished completions with "abort", reported by the next `step`. No effect on any other id. */
  abort(id: string): void {
    for (const sequence of this.#requests.get(id)?.sequences ?? []) {
      if (sequence.status !== "finished") this.#end(sequence, "abort");
    }
  }

  /**
   * Launches a step if there is something to compute, and collects one if the pipeline is full or there is not.
   * @throws EngineDeadError when the runner dies, which ends all requests, and from then on.
   */
  step(): StepOutput {
    this.#assertAlive();
    this.#endMatched();
    // Before scheduling: an answer may come while that goes on, and its word is on the way then.
    const isAnswerDue = this.#matched.awaitMasks;
    const step = this.#scheduler.schedule(this.#inFlight.length === 0);
    const numBatchedTokens = step ? this.#launch(step) : 0;
    if (numBatchedTokens > 0 && step!.batch.rows.some(({ masked }) => masked)) this.#draw(step!);
    this.#isBlocked = false;
    if (this.#inFlight.length >= (step ? this.#pipelineDepth : 1)) this.#collect();
    else if (!step && this.hasUnfinished && this.#outbox.isEmpty) {
      this.#isBlocked = isAnswerDue;
      invariant(isAnswerDue, "nothing can be scheduled");
    }
    if (this.#deps.debugInvariants) this.checkIntegrity();
    if (this.#failure) throw this.#failure;
    return this.#outbox.take(numBatchedTokens);
  }

  stats(): EngineStats {
    const { running, waiting, numPreemptions, prefixQueries, prefixHits } = this.#scheduler;
    const { numBlocks, numFree, cache } = this.#blocks;
    return {
      running: running.size,
      waiting: waiting.size,
      kvUsage: 1 - numFree / numBlocks,
      cachedBlocks: cache?.size ?? 0,
      steps: this.#numSteps,
      preemptions: numPreemptions,
      prefixQueries,
      prefixHits,
      promptTokens: this.#promptTokens,
      generationTokens: this.#generationTokens,
    };
  }

  /** The state of blocks and queues between two steps. Walks them all: for people who look, not for every step. */
  view(): EngineView {
    return viewOf(this.#scheduler, this.#blocks, this.stats());
  }

  /** Empties the prefix cache. False, and nothing happens, while a sequence holds blocks. */
  resetPrefixCache(): boolean {
    const { waiting, running } = this.#scheduler;
    // With no sequence left, steps in flight are of such as have ended, whose blocks are theirs until then.
    if (waiting.size + running.size === 0) while (this.#inFlight.length > 0) this.#collect();
    return this.#blocks.resetCache();
  }

  /** Throws `InvariantError` unless all state is consistent. For tests and debugging: walks everything. */
  checkIntegrity(): void {
    const rows = new Map<Sequence, ScheduledRow[]>();
    for (const { sequences, batch } of this.#inFlight) {
      for (const [i, sequence] of sequences.entries())
        rows.set(sequence, [...(rows.get(sequence) ?? []), batch.rows[i]!]);
    }
    const { waiting, running, draining } = this.#scheduler;
    for (const sequence of [...waiting, ...running, ...draining])
      invariant(sequence.inFlight === (rows.get(sequence)?.length ?? 0), "a step in flight is miscounted");
    for (const sequence of running) {
      const { numComputedTokens, numScheduledTokens, maxPendingTokens } = sequence;
      let [computed, drawn] = [numComputedTokens, 0];
      for (const { count, sample, drafts = 0 } of rows.get(sequence) ?? []) {
        computed += count;
        if (sample) drawn += drafts + 1;
      }
      invariant(computed === numScheduledTokens, "tokens in flight are not those scheduled");
      invariant(drawn === maxPendingTokens, "drawn tokens in flight are not those pending");
    }
    let unfinished = 0;
    for (const { state, sequences } of this.#requests.values()) {
      for (const [index, { status }] of sequences.entries()) {
        if (status !== "finished") unfinished++;
        const ended = state.completions[index]!.finishReason !== null;
        invariant(ended === (status === "finished"), "a sequence and its completion disagree about the end");
      }
    }
    invariant(unfinished === waiting.size + running.size, "an unfinished sequence is in no queue");
    this.#scheduler.checkIntegrity();
  }

  /** Ends everything and disposes of the runner. Safe to call twice. */
  dispose(): void {
    if (!this.#failure) this.#die(new EngineDeadError("the engine has been disposed of"));
    this.#deps.runner.dispose();
  }

  /** @returns the tokens in its batch; 0 when launching failed. */
  #launch(step: ScheduledStep): number {
    const now = this.#deps.clock();
    for (const sequence of step.admitted) {
      const { state, completion } = this.#owner(sequence);
      if (state.firstScheduledTime === undefined) {
        state.firstScheduledTime = now;
        this.#outbox.prompt(state);
      }
      if (completion.index === 0) state.numCachedTokens = sequence.numCachedTokens;
    }
    try {
      this.#deps.runner.launch(step.batch);
    } catch (error) {
      this.#fail(error, step.sequences);
      return 0;
    }
    this.#numSteps++;
    this.#inFlight.push(step);
    for (const sequence of step.sequences) {
      sequence.inFlight++;
      // While the device computes, not when its results have come and somebody waits for them.
      this.#scheduler.preparePublication(sequence);
    }
    return step.batch.numTokens;
  }

  /** Waits for the oldest step in flight and takes in its results. */
  #collect(): void {
    let result: StepResult | undefined;
    let failure: unknown;
    try {
      result = this.#deps.runner.collect();
    } catch (error) {
      failure = error;
    }
    const { sequences, batch } = this.#inFlight.shift()!;
    const now = this.#deps.clock();
    for (let i = 0; i < sequences.length; i++) {
      const sequence = sequences[i]!;
      sequence.inFlight--;
      if (sequence.status === "finished") this.#scheduler.drain(sequence);
      else if (result && sequence.isHeld) this.#scheduler.putBack(sequence);
      else if (result) this.#accept(sequence, batch.rows[i]!, i, result, now);
    }
    if (!result) this.#fail(failure, sequences);
    this.#matched.ask();
  }

  /** Lets a step with masked rows draw, for which the tokens of the step before must have been collected. */
  #draw(step: ScheduledStep): void {
    while (this.#inFlight.length > 1) this.#collect();
    if (this.#failure) return;
    this.#matched.settle(this.#pipelineDepth === 1);
    this.#endMatched();
    try {
      this.#deps.runner.draw(this.#matched.masksOf(step));
    } catch (error) {
      this.#takeOut(this.#inFlight.pop()!);
      this.#fail(error, step.sequences);
    }
  }

  /** Ends sequences whose text is complete without a stop token, and those whose matcher has failed. */
  #endMatched(): void {
    for (const sequence of this.#matched.ended()) {
      const { error } = sequence.matcher!;
      if (error) this.#end(sequence, "error", requestError(error));
      else this.#end(sequence, "stop");
    }
  }

  /** Takes in one row. What fails here fails this completion alone. */
  #accept(sequence: Sequence, row: ScheduledRow, index: number, result: StepResult, now: number): void {
    const { state, completion } = this.#owner(sequence);
    const first = sequence.numComputedTokens;
    const { tokens } = result;
    const start = result.offsets[index]!;
    const end = result.offsets[index + 1]!;
    try {
      const promptLogprobs = result.promptLogprobs.get(index);
      if (promptLogprobs) state.recordPromptLogprobs(first, promptLogprobs, this.#decodeToken);
      const logits = result.logits.get(index);
      if (logits) state.recordLogits(first, logits);
      const states = result.states.get(index);
      if (states) state.recordStates(first, states, row.count);
      if (row.sample && tokens[end - 1]! < 0) throw notDrawn(tokens[end - 1]!, state.request);
      const isFirst = sequence.length === sequence.promptLength;
      sequence.collect(row, tokens, start, end);
      if (!row.sample) {
        if (sequence.isRead && sequence.numComputedTokens === sequence.promptLength)
          this.#end(sequence, "length");
        else this.#scheduler.advance(sequence);
        return;
      }
      // Only a finite result shows that everything it was computed from is sound.
      this.#scheduler.settle(sequence);
      if (isFirst) {
        sequence.promptLogprobs = undefined;
        this.#promptTokens += sequence.promptLength;
        if (state.firstTokenTime === undefined) state.firstTokenTime = now;
      }
      const logprobs = row.logprobs === undefined ? undefined : result.logprobs.get(index);
      // What was drawn after the last token of the completion is not part of it.
      for (let i = start; i < end && completion.finishReason === null; i++) {
        this.#generationTokens++;
        if (logprobs) {
          const entries = positionLogprobs(logprobs, i - start, row.logprobs!, this.#decodeToken);
          completion.append(tokens[i]!, entries);
        } else completion.append(tokens[i]!);
      }
    } catch (error) {
      if (error instanceof InvariantError) throw error;
      this.#end(sequence, "error", requestError(error));
      return;
    }
    if (completion.finishReason !== null) {
      this.#retire(sequence);
      return;
    }
    if (sequence.matcher) for (let i = start; i < end; i++) sequence.matcher.accept(tokens[i]!);
    this.#send(state, completion);
  }

  /** The runner failed as a whole, or in a step that computed `sequences`. */
  #fail(error: unknown, sequences: readonly Sequence[]): void {
    if (error instanceof EngineDeadError) this.#die(error);
    else if (error instanceof InvariantError)
      this.#die(new EngineDeadError(`the runner failed: ${error.message}`, { cause: error }));
    for (const sequence of sequences) {
      if (sequence.status !== "finished") this.#end(sequence, "error", requestError(error));
    }
  }

  #die(failure: EngineDeadError): void {
    this.#failure = failure;
    for (const step of this.#inFlight.splice(0)) this.#takeOut(step);
    for (const { sequences } of this.#requests.values()) {
      for (const sequence of sequences) {
        if (sequence.status !== "finished") this.#end(sequence, "error", failure);
      }
    }
    this.#outbox.clear();
  }

  /** A step is in flight no more, and nothing will be known of it. */
  #takeOut({ sequences }: ScheduledStep): void {
    for (const sequence of sequences) {
      sequence.inFlight--;
      if (sequence.status === "finished") this.#scheduler.drain(sequence);
    }
  }

  #end(sequence: Sequence, reason: FinishReason, error?: Error): void {
    this.#owner(sequence).completion.finish(reason, null, error);
    this.#retire(sequence);
  }

  /** The completion has ended: reports it and frees its sequence, and forgets its request if it was the last. */
  #retire(sequence: Sequence): void {
    const { state, completion } = this.#owner(sequence);
    this.#scheduler.finish(sequence);
    this.#matched.remove(sequence);
    this.#send(state, completion);
    if (!state.isFinished) return;
    state.finishedTime = this.#deps.clock();
    this.#outbox.finished(state);
    this.#requests.delete(state.request.id);
  }

  #send(state: RequestState, completion: Completion): void {
    const delta = completion.takeDelta();
    if (!delta) return;
    this.#outbox.delta(delta);
    if (state.hasDelta) return;
    state.hasDelta = true;
    this.#outbox.prompt(state);
  }

  #owner(sequence: Sequence): Owner {
    return this.#owners.get(sequence)!;
  }

  #assertAlive(): void {
    if (this.#failure) throw new EngineDeadError(this.#failure.message, { cause: this.#failure });
  }
}

/** The reason that a row has no token: what its request forbids, or a fault of the numbers. */
function notDrawn(token: number, { sampling, badWordTokens, grammar }: EngineRequest): Error {
  if (token === NotDrawn.nothingAllowed && grammar !== undefined) {
    const message = "structuredOutputs and the request's bans leave no token that could come next";
    return new NoTokenAllowedError("structuredOutputs", message);
  }
  if (token === NotDrawn.nothingAllowed && badWordTokens.length > 0) {
    const limits = sampling.allowedTokenIds ? "allowedTokenIds and badWords" : "badWords";
    const message = `${limits} leave no token that could come next`;
    return new NoTokenAllowedError("badWords", message);
  }
  return new RequestFailedError("the logits are not finite numbers", "numerical_error");
}

function requestError(error: unknown): Error {
  if (error instanceof RequestFailedError || error instanceof InvalidRequestError) return error;
  return new RequestFailedError(`the step failed: ${messageOf(error)}`, "step_failed", { cause: error });
}
