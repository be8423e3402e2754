import type { IHasher } from "hash-wasm";
import { EngineDeadError } from "../../src/base/errors.ts";
import { type KvGroup, tokensInPool } from "../../src/base/kv-group.ts";
import type { ResolvedSamplingParams } from "../../src/base/sampling-params.ts";
import { Engine } from "../../src/engine/engine.ts";
import { checkRequest, type EngineRequest, type RequestDraft } from "../../src/engine/request.ts";
import type { StepOutput } from "../../src/engine/step-output.ts";
import type { Fault } from "./fake-device.ts";
import { FakeRanks } from "./fake-ranks.ts";
import { type Execution, FakeRunner, type FakeRunnerOptions } from "./fake-runner.ts";
import { digests, EOS, logprobOf, makeSeed, reference, saltOf, ToyTextStream, VOCAB } from "./oracle.ts";
import { Outcomes } from "./outcomes.ts";
import { Random } from "./random.ts";
import { SimMatchers } from "./sim-matchers.ts";

/** What a simulated run came to, for statements about many runs. */
export interface Summary {
  requests: number;
  steps: number;
  preemptions: number;
  prefixHits: number;
  errors: number;
  aborts: number;
  /** Drafts computed, and those accepted. */
  drafts: number;
  accepted: number;
  /** Rows whose masks had not come when they were to be drawn. */
  late: number;
  died: boolean;
  /** More than one computed, and one of them died. */
  ranks: boolean;
  rankDied: boolean;
}

interface Tracked {
  request: EngineRequest;
  failAfter: number | undefined;
  aborted: boolean;
}

/** Runs an engine under a random load with random faults, and throws at the first thing that is not as it must be. */
export function simulate(seed: number, hasher: IHasher): Summary {
  const random = new Random(seed);
  const blockSize = random.pick([1, 2, 3, 4, 4, 8, 16]);
  const numBlocks = 4 + random.below(random.pick([8, 37]));
  const maxModelLen = 8 + random.below(56);
  const maxNumSeqs = random.pick([1 + random.below(8), 8]);
  const maxNumBatchedTokens = random.pick([1 + random.below(8), 1 + random.below(64)]);
  const groups = groupsOf(seed);
  const limit = Math.min(maxModelLen, tokensInPool(groups, numBlocks, blockSize));
  const faultPercent = random.chance(40) ? random.pick([1, 4, 10]) : 0;
  const mayDie = random.chance(3);
  const guessPercent = random.pick([0, 50, 90, 100]);
  let faultsLeft = 6;
  const grammars = new Random(seed + 1_000_003);
  const grammarPercent = grammars.pick([0, 30, 100]);
  const matchers = new SimMatchers(grammars);

  const fault = (): Fault | undefined => {
    if (mayDie && random.chance(3)) return "dead";
    if (faultsLeft === 0 || !random.chance(faultPercent)) return undefined;
    faultsLeft--;
    const picked = random.pick<Fault>(["launch", "collect", "nan", "nan"]);
    return picked === "launch" && grammars.chance(50) ? "draw" : picked;
  };
  const options: FakeRunnerOptions = {
    ...{ numBlocks, blockSize, maxNumSeqs, maxNumBatchedTokens, maxModelLen, fault },
    maxInFlight: 1 + random.below(3),
    maxDrafts: random.pick([0, 0, 1, 2, 3, 3]),
    guesses: () => random.chance(guessPercent),
    execution: random.pick<Execution>(["eager", "lazy", "reordered"]),
    death: new EngineDeadError("the device is gone"),
    groups,
    ...(groups.length === 1 && groups[0]!.reach === Infinity && statesOf(seed, blockSize)),
  };
  const ranks = simulateRanks(seed, options);
  const fake = ranks?.leader ?? new FakeRunner(options);
  const failures = new Map<Int32Array, number>();
  let now = 0;
  const engine = new Engine({
    ...{ runner: ranks?.runner ?? fake, maxNumSeqs, maxNumBatchedTokens, hasher },
    enablePrefixCaching: random.chance(80),
    overlap: random.chance(70),
    eosTokenIds: [EOS],
    clock: () => now++,
    nextSeed: () => 0n,
    createTextStream: (prompt) => new ToyTextStream(failures.get(prompt)),
    decodeToken: (id) => `<${id}>`,
    debugInvariants: false,
    matchers,
  });

  const bases = [0, 1, 2].map(() => Array.from({ length: 64 }, () => random.below(VOCAB)));
  const numRequests = 1 + random.below(10);
  const spread = random.pick([1, 10, 60]);
  const arrivals = Array.from({ length: numRequests }, (_, i) => ({
    at: random.below(spread),
    request: underGrammar(makeRequest(random, i, bases, limit), grammars.chance(grammarPercent)),
    failAfter: random.chance(4) ? random.below(6) : undefined,
  })).sort((a, b) => a.at - b.at);
  const abortPercent = random.pick([0, 0, 5, 20]);
  const tracked = new Map<string, Tracked>();
  let generated = -1;
  let idleTicks = 0;
  // With windows a prompt may come to wait for one block after another, until the step before it is collected.
  const hasWindow = groups.some(({ reach }) => reach < Infinity);
  const pace = hasWindow ? Math.min(blockSize, maxNumBatchedTokens) / 2 : maxNumBatchedTokens;
  const patience = Math.ceil(maxModelLen / pace) + 8;

  const must = (condition: boolean, message: string): void => {
    if (!condition) throw new Error(message);
  };
  const outcomes = new Outcomes();
  let died = false;
  /** Undefined when the engine dies. */
  const step = (): StepOutput | undefined => {
    try {
      return engine.step();
    } catch (error) {
      if (!(error instanceof EngineDeadError)) throw error;
      died = true;
      return undefined;
    }
  };

  for (let tick = 0; arrivals.length > 0 || engine.hasUnfinished; tick++) {
    while (arrivals[0] && arrivals[0].at <= tick) {
      const { request, failAfter } = arrivals.shift()!;
      const { length } = request.promptTokenIds;
      const wanted = request.logits
        ? 0
        : (request.sampling.maxTokens ?? Math.max(1, request.sampling.minTokens));
      const before = engine.stats().waiting;
      let refused = false;
      let checked: EngineRequest | undefined;
      try {
        checked = checkRequest(request, engine.limits);
        if (failAfter !== undefined) failures.set(checked.promptTokenIds, failAfter);
        engine.add(checked);
      } catch {
        refused = true;
      }
      const fits = length > 0 && length + wanted <= limit;
      must(refused === !fits, `${request.id} was ${refused ? "refused" : "accepted"}`);
      const queued = engine.stats().waiting - before;
      must(queued === (refused ? 0 : request.sampling.n), `${request.id}: ${queued} sequences queued`);
      if (checked === undefined || refused) continue;
      const { n, seed } = request.sampling;
      for (let i = 0; request.lockstep && i < n; i++) fake.lockstep.add(seed! + BigInt(i));
      tracked.set(request.id, { request: checked, failAfter, aborted: false });
    }
    if (tracked.size > 0 && random.chance(abortPercent)) {
      const victim = random.pick([...tracked.values()]);
      victim.aborted = true;
      for (let i = 0; i <= random.below(2); i++) engine.abort(victim.request.id);
      engine.abort("nobody");
      engine.checkIntegrity();
    }
    if (random.chance(2)) engine.resetPrefixCache();
    if (!engine.hasUnfinished) continue;

    const output = step();
    engine.checkIntegrity();
    matchers.pass(engine.isBlocked);
    if (!output) break;
    outcomes.take(output);
    if (output.deltas.some(({ finishReason }) => finishReason !== null)) idleTicks = 0;
    must(fake.violations.length === 0, fake.violations.join("; "));
    const { running, generationTokens, kvUsage } = engine.stats();
    must(running <= maxNumSeqs, "too many sequences run");
    must(kvUsage >= 0 && kvUsage <= 1, "kvUsage out of range");
    idleTicks = generationTokens > generated ? 0 : idleTicks + 1;
    generated = generationTokens;
    must(idleTicks <= patience, `no progress in ${idleTicks} steps`);
  }

  const wrong = ranks?.finish() ?? [];
  must(wrong.length === 0, wrong.join("; "));
  const { steps, preemptions, prefixHits, kvUsage, running, waiting } = engine.stats();
  must(running + waiting === 0 && kvUsage === 0, "something is left when all is done");
  const { numDrafts: drafts, numAccepted: accepted } = fake;
  const counts = { requests: 0, steps, preemptions, prefixHits, errors: 0, aborts: 0 };
  const rankDied = ranks?.hasFailed ?? false;
  const { numLate: late } = matchers;
  const summary: Summary = { ...counts, drafts, accepted, late, died, ranks: ranks !== undefined, rankDied };
  for (const entry of tracked.values()) {
    verify(entry, outcomes, died, fake, limit, must);
    summary.requests++;
    for (const { finishReason } of outcomes.completions(entry.request.id)) {
      if (finishReason === "error") summary.errors++;
      if (finishReason === "abort") summary.aborts++;
    }
  }
  must(engine.resetPrefixCache() && engine.stats().cachedBlocks === 0, "the cache could not be emptied");
  must(matchers.numLive === 0, "a matcher outlived its sequence");
  engine.checkIntegrity();
  engine.dispose();
  return summary;
}

/** Layers with windows in half of the runs, alone or beside others, in one group or several, by a chance of its own. */
function groupsOf(seed: number): readonly KvGroup[] {
  const random = new Random(seed ^ 0x77ac4);
  const kinds = random.pick(["whole", "whole", "window", "mixed"]);
  const reach = 1 + random.below(random.pick([4, 12, 40]));
  const windows = Array.from({ length: random.pick([1, 1, 2, 3]) }, () => ({ reach }));
  if (kinds === "window") return windows;
  return kinds === "whole" ? [{ reach: Infinity }] : [{ reach: Infinity }, ...windows];
}

/** Slots with states in one run of four of those without windows, by a chance of its own. */
function statesOf(seed: number, blockSize: number): Partial<FakeRunnerOptions> {
  const random = new Random(seed ^ 0x57a7e);
  if (!random.chance(25)) return {};
  const states = { numSnapshots: random.below(6), snapshotInterval: blockSize * random.pick([1, 2, 3]) };
  return { states, maxDrafts: 0 };
}

/** Ranks in one run of five, with chances of their own: what else a seed stands for does not depend on them. */
function simulateRanks(seed: number, options: FakeRunnerOptions): FakeRanks | undefined {
  const random = new Random(seed ^ 0x5eed);
  if (!random.chance(20)) return undefined;
  const mayDie = random.chance(20);
  return new FakeRanks(options, {
    size: random.pick([2, 2, 3, 4]),
    lag: (waiting) => random.below(waiting + 1),
    dies: () => mayDie && random.chance(4),
  });
}

function verify(
  { request, failAfter, aborted }: Tracked,
  outcomes: Outcomes,
  died: boolean,
  runner: FakeRunner,
  limit: number,
  must: (condition: boolean, message: string) => void,
): void {
  const { id, sampling, promptTokenIds } = request;
  const summary = outcomes.finished.get(id);
  must(summary !== undefined || died, `${id} is not finished`);
  const completions = Array.from({ length: sampling.n }, (_, index) => outcomes.completion(id, index));
  for (const [index, output] of completions.entries()) {
    const name = `${id}/${index}`;
    const expected = reference(request, index, limit, failAfter);
    must(output.finishReason !== null || died, `${name}: no final delta`);
    const tokens = expected.tokens.slice(0, output.tokenIds.length);
    must(String(output.tokenIds) === String(tokens), `${name}: ${output.tokenIds} instead of ${tokens}`);
    if (sampling.logprobs !== undefined) {
      must(output.logprobs.length === output.tokenIds.length, `${name}: a log-probability is missing`);
      output.logprobs.forEach((entries, i) => {
        const [token, entry] = [...entries][0]!;
        must(token === output.tokenIds[i], `${name}: the log-probabilities are of another token`);
        must(entry.logprob === expected.logprobs[i], `${name}: a log-probability is wrong`);
      });
    }
    const hit = runner.victims.has(sampling.seed! + BigInt(index));
    if (output.finishReason === "abort") must(aborted, `${name} was not aborted`);
    else if (output.finishReason !== null && (output.finishReason !== "error" || !hit)) {
      must(output.finishReason === expected.finishReason, `${name}: ended with ${output.finishReason}`);
      must(output.stopReason === expected.stopReason, `${name}: stopped at ${output.stopReason}`);
      must(tokens.length === expected.tokens.length, `${name}: ${tokens.length} tokens`);
      must(output.text === expected.text, `${name}: ${output.text} instead of ${expected.text}`);
    }
  }
  if (!summary) return;
  must(summary.cachedTokens < promptTokenIds.length, `${id}: no prompt token was computed`);
  for (const [index, { tokenIds, finishReason }] of completions.entries()) {
    must(summary.completionTokens[index] === tokenIds.length, `${id}/${index}: tokens are miscounted`);
    must(summary.finishReasons[index] === finishReason, `${id}/${index}: two reasons to finish`);
  }
  if (!completions.every(({ finishReason }) => finishReason === "stop" || finishReason === "length")) return;
  const seen = digests(promptTokenIds, saltOf(sampling.seed!));
  const { promptLogprobs, logits } = outcomes.prompts.get(id)!;
  must((sampling.promptLogprobs === undefined) === (promptLogprobs === undefined), `${id}: prompt positions`);
  must((promptLogprobs?.[0] ?? null) === null, `${id}: nothing predicts the first token`);
  promptLogprobs?.slice(1).forEach((entries, i) => {
    const token = promptTokenIds[i + 1]!;
    const logprob = entries?.get(token)?.logprob;
    must(logprob === logprobOf(seen[i]!, token), `${id}: prompt log-probability ${i + 1} is ${logprob}`);
  });
  must(request.logits === (logits !== undefined), `${id}: logits that were not asked for, or none`);
  if (!logits) return;
  must(logits.length === seen.length * VOCAB, `${id}: ${logits.length} logits`);
  for (let i = 0; i < logits.length; i++)
    must(logits[i] === logprobOf(seen[Math.floor(i / VOCAB)]!, i % VOCAB), `${id}: logit ${i}`);
}

function underGrammar(request: RequestDraft, isMatched: boolean): RequestDraft {
  return isMatched && !request.logits ? { ...request, grammar: "root ::= root" } : request;
}

function makeRequest(random: Random, index: number, bases: number[][], limit: number): RequestDraft {
  const salt = random.pick([0, 0, 1, 2]);
  const shared = random.pick(bases).slice(0, random.below(random.pick([12, 48])));
  const own = Array.from({ length: random.below(10) }, () => random.below(VOCAB));
  let promptTokenIds = [...shared, ...own];
  if (random.chance(85)) promptTokenIds = promptTokenIds.slice(0, Math.max(1, limit - 1 - random.below(12)));
  const room = Math.max(1, limit - promptTokenIds.length);
  const maxTokens = random.chance(20) ? undefined : 1 + random.below(random.chance(90) ? room : 80);
  const minTokens = random.chance(20) ? random.below((maxTokens ?? room) + 1) : 0;
  const logits = random.chance(5);
  const n = logits || random.chance(65) ? 1 : 2 + random.below(4);
  const detokenize = random.chance(80);
  const stop = detokenize && random.chance(30) ? [random.pick(["ab", "ca", "abc", "?d"]), "ddd"] : [];
  const sampling: ResolvedSamplingParams = {
    ...{ n, temperature: 1, topP: 1, topK: 0, minP: 0, maxTokens, minTokens, stop, detokenize },
    ...{ presencePenalty: 0, frequencyPenalty: 0, repetitionPenalty: 1 },
    seed: makeSeed(index, salt),
    stopTokenIds: random.chance(20) ? [5] : [],
    includeStopStrInOutput: random.chance(50),
    ignoreEos: random.chance(60),
    logprobs: random.chance(15) ? random.below(4) : undefined,
    promptLogprobs: random.chance(10) ? random.below(4) : undefined,
    ...{ logitBias: [], allowedTokenIds: undefined, badWords: [], skipSpecialTokens: true },
    isMaxTokensDefault: false,
    outputKind: random.pick(["delta", "finalOnly", undefined]),
  };
  return {
    ...{ id: `r${index}`, promptTokenIds, sampling, logits, arrivalTime: 0, lockstep: random.chance(10) },
    ...(salt > 0 && { cacheSalt: `tenant ${salt}` }),
  };
}
