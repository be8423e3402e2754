import { tokenMask } from "../base/token-mask.ts";
import type { GrammarMatcher } from "./mask-engine.ts";
import type { MaskEngines } from "./mask-engines.ts";
import {
  AnswerState,
  MatcherMemory,
  type MatcherMessage,
  type StageMessage,
  type StageReply,
  StageWord,
} from "./stage-protocol.ts";

/** A mask that takes longer is slow, in milliseconds: thousands of times what a grammar of ours takes. */
const SLOW_MS = 250;
/** Slow masks in a row that end a matcher. One may be the machine's fault, or a first visit. */
const MAX_SLOW = 4;
/** Time of a matcher's masks beyond this for each, which a grammar of ours never takes, and the most of it in all, in milliseconds. */
const [FAST_MS, MAX_TOTAL_MS] = [20, 10_000];

interface Live {
  readonly id: number;
  readonly matcher: GrammarMatcher;
  readonly memory: MatcherMemory;
  /** The request's own allowed tokens, or all of the vocabulary, as a mask: bits past the vocabulary mean nothing in xgrammar's. */
  readonly allowed: Uint32Array;
  /** Tokens that the matcher has been told of; there is one answer more. */
  numTokens: number;
  numSlow: number;
  /** Time that its masks have taken beyond `FAST_MS` each, in milliseconds. */
  slowMs: number;
}

/** The Worker's matchers: each answers every token with the mask of the next. */
export class MatcherThread {
  readonly #live = new Map<number, Live>();
  readonly #shared: Int32Array;
  #isAborted = false;

  constructor(
    private readonly engines: MaskEngines,
    shared: SharedArrayBuffer,
    private readonly post: (reply: StageReply) => void,
    private readonly clock: () => number = () => performance.now(),
  ) {
    this.#shared = new Int32Array(shared);
  }

  /** There are matchers that may be told of tokens. */
  get isLive(): boolean {
    return this.#live.size > 0 && !this.#isAborted;
  }

  async handle(message: Exclude<StageMessage, { type: "vocabulary" }>): Promise<void> {
    if (this.#isAborted) return;
    if (message.type === "open") await this.#work(message.id, () => this.#open(message));
    else {
      this.#live.get(message.id)?.matcher.dispose();
      this.#live.delete(message.id);
    }
  }

  /** Answers the tokens that matchers have been told of. */
  async takeTokens(): Promise<void> {
    for (const live of this.#live.values()) {
      if (this.#isAborted) return;
      const { id, memory } = live;
      if (memory.numTokens !== live.numTokens + 1) continue;
      live.numTokens++;
      await this.#work(id, () => this.#accept(live, memory.token));
    }
  }

  async #work(id: number, run: () => Promise<void>): Promise<void> {
    Atomics.store(this.#shared, StageWord.current, id);
    try {
      await run();
    } catch {
      this.#isAborted = true;
      this.post({ type: "aborted", id });
    }
    Atomics.store(this.#shared, StageWord.current, 0);
  }

  async #open(message: MatcherMessage): Promise<void> {
    const { id, grammar, markers, stopTokenIds, allowedTokenIds, tokens, memory } = message;
    const engine = await this.engines.of(markers);
    const matcher = await engine.matcher(grammar, stopTokenIds);
    const shared = new MatcherMemory(memory);
    const allowed = tokenMask(this.engines.vocabSize, allowedTokenIds);
    const { unusedToken } = engine;
    if (stopTokenIds.length === 0) allowed[unusedToken >>> 5]! &= ~(1 << (unusedToken & 31));
    const live = { id, matcher, memory: shared, allowed, numTokens: tokens.length, numSlow: 0, slowMs: 0 };
    this.#live.set(id, live);
    if (tokens.every((token) => matcher.acceptToken(token))) await this.#fill(live);
    else this.#answer(live, AnswerState.refused);
  }

  async #accept(live: Live, token: number): Promise<void> {
    if (live.matcher.acceptToken(token)) await this.#fill(live);
    else this.#answer(live, AnswerState.refused);
  }

  async #fill(live: Live): Promise<void> {
    const { matcher, memory, allowed } = live;
    if (matcher.isTerminated()) return this.#answer(live, AnswerState.complete);
    const start = this.clock();
    const mask = await matcher.getNextTokenBitmask();
    const taken = this.clock() - start;
    live.numSlow = taken > SLOW_MS ? live.numSlow + 1 : 0;
    live.slowMs += Math.max(0, taken - FAST_MS);
    const { isEmpty, hasChanged } = intersect(memory.mask, mask, allowed);
    if (live.numSlow >= MAX_SLOW || live.slowMs > MAX_TOTAL_MS)
      this.#answer(live, AnswerState.slow, hasChanged);
    else this.#answer(live, isEmpty ? AnswerState.complete : AnswerState.mask, hasChanged);
  }

  #answer(live: Live, state: AnswerState, hasChanged = false): void {
    live.memory.answer(live.numTokens + 1, state, hasChanged);
    Atomics.add(this.#shared, StageWord.answers, 1);
    Atomics.notify(this.#shared, StageWord.answers);
    if (Atomics.exchange(this.#shared, StageWord.listens, 0) === 1) this.post({ type: "answered" });
  }
}

/**
 * Fills `out` with what both have. Only words that change are written: the others stay in the caches of whoever reads them. A function
 * of its own, which is compiled: thirty times as fast.
 */
function intersect(
  out: Uint32Array,
  a: Int32Array,
  b: Uint32Array,
): { readonly isEmpty: boolean; readonly hasChanged: boolean } {
  let [any, changed] = [0, 0];
  for (let i = 0; i < out.length; i++) {
    const word = a[i]! & b[i]!;
    const change = word ^ out[i]!;
    if (change !== 0) out[i] = word;
    changed |= change;
    any |= word;
  }
  return { isEmpty: any === 0, hasChanged: changed !== 0 };
}
