import { GrammarTooComplexError, RequestFailedError } from "../base/errors.ts";
import { workerScript } from "../base/program-file.ts";
import { WorkerLink } from "../threads/worker-link.ts";
import type { PackedTokens } from "../tokenizer/token-table.ts";
import {
  AnswerState,
  MatcherMemory,
  type StageMessage,
  type StageReply,
  StageWord,
} from "./stage-protocol.ts";

/** What a matcher's texts are held to. */
export interface MatcherInit {
  /** EBNF with a rule `root`. */
  readonly grammar: string;
  /** Tokens that the grammar asks for as such. Default none. */
  readonly markers?: readonly number[] | undefined;
  /** Tokens that may end a complete text, and nothing else. */
  readonly stopTokenIds: readonly number[];
  /** The only tokens that may come at all; undefined: any. */
  readonly allowedTokenIds: readonly number[] | undefined;
}

/** The parameter that errors name. */
const PARAM = "structuredOutputs";
/** A mask that a step waits for is late after a share of the time since the step before, within these bounds in milliseconds. */
const LATE_SHARE = 0.05;
const [LEAST_LATE_MS, MOST_LATE_MS] = [1, 10];
/** Tokens of a matcher that was late for which nobody waits. */
const LATE_TOKENS = 4;
/** Longest that a step waits for a mask, in milliseconds. */
const MAX_WAIT_MS = 1000;
/** Longest that the Worker may be busy with one matcher, in milliseconds. */
const MAX_BUSY_MS = 15_000;

export interface GrammarStageOptions {
  readonly worker?: URL;
  readonly maxBusyMs?: number;
  /** Called when some matcher may have been answered. */
  readonly onChange?: () => void;
}

/** The Worker's script. */
export const STAGE_WORKER = workerScript("src/grammar/stage-worker.ts");

/**
 * Matchers of grammars in a Worker. What is asked of them is answered in shared memory, so that a thread that is stepping an
 * engine sees answers without a turn of its event loop. When xgrammar aborts, or is busy with one matcher for too long, that
 * matcher fails, and a new Worker is fed what the others have seen so far.
 */
export class GrammarStage {
  readonly #live = new Map<number, Matcher>();
  readonly #worker: URL;
  readonly #maxBusyMs: number;
  readonly #onChange: () => void;
  readonly #shared = new Int32Array(new SharedArrayBuffer(8));
  #link: WorkerLink<StageMessage, StageReply> | undefined;
  #changed = Promise.withResolvers<void>();
  #timer: Timer | undefined;
  #lastAnswer = 0;
  #lastSettled = 0;
  #nextId = 1;
  #accepted: number[] = [];

  constructor(
    private readonly tokens: () => PackedTokens,
    private readonly vocabSize: number,
    { worker = STAGE_WORKER, maxBusyMs = MAX_BUSY_MS, onChange = () => {} }: GrammarStageOptions = {},
  ) {
    this.#onChange = onChange;
    this.#worker = worker;
    this.#maxBusyMs = maxBusyMs;
  }

  /** Matchers that have not been disposed of. */
  get numLive(): number {
    return this.#live.size;
  }

  /** A matcher at the beginning of a text; it is not ready yet. The first one starts the Worker. */
  open(init: MatcherInit): Matcher {
    const id = this.#nextId++;
    const matcher = new Matcher(id, init, MatcherMemory.allocate(this.vocabSize), {
      accepted: (token) => this.#accept(id, token),
      disposed: () => this.#close(id),
    });
    this.#live.set(id, matcher);
    this.#link ??= this.#start();
    this.#link.post(openMessage(matcher));
    this.#watch();
    return matcher;
  }

  /** Sends the tokens that matchers have been told of since the last time. */
  flush(): void {
    if (this.#accepted.length === 0) return;
    this.#link?.post({ type: "accept", pairs: Int32Array.from(this.#accepted) });
    this.#accepted = [];
    this.#watch();
  }

  /**
   * Waits for the masks that follow accepted tokens, of all matchers that are not slow. Blocks the thread. One whose mask is late
   * is slow for a while; one that makes a step wait for a second fails.
   */
  settle(): void {
    const now = performance.now();
    const late =
      now + Math.min(Math.max(LATE_SHARE * (now - this.#lastSettled), LEAST_LATE_MS), MOST_LATE_MS);
    this.#lastSettled = now;
    for (const matcher of [...this.#live.values()].filter(({ isSlow }) => !isSlow)) {
      while (matcher.isPending) {
        const seen = Atomics.load(this.#shared, StageWord.answers);
        if (!matcher.isPending) break;
        const time = performance.now();
        if (time >= late) matcher.late();
        const left = now + MAX_WAIT_MS - time;
        if (left <= 0) matcher.fail(new GrammarTooComplexError(PARAM, TOO_SLOW));
        else Atomics.wait(this.#shared, StageWord.answers, seen, time < late ? late - time : left);
      }
    }
  }

  /** Resolves when some matcher may have been answered. */
  changed(): Promise<void> {
    return this.#changed.promise;
  }

  /** Ends the Worker. Matchers are not answered any more. Safe to call twice. */
  dispose(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    void this.#link?.terminate();
    this.#link = undefined;
    this.#live.clear();
    this.#ring();
  }

  #start(): WorkerLink<StageMessage, StageReply> {
    const link = new WorkerLink<StageMessage, StageReply>(this.#worker, { keepsAlive: false });
    link.onMessage = (reply) => {
      this.#lastAnswer = performance.now();
      if (reply.type === "aborted") this.#restart(reply.id, new GrammarTooComplexError(PARAM, ABORTED));
      else this.#ring();
    };
    link.onEnd = (reason) => {
      const message = `the grammar stage ended: ${reason}`;
      this.#restart(
        Atomics.load(this.#shared, StageWord.current),
        new RequestFailedError(message, "grammar_failed"),
      );
    };
    Atomics.store(this.#shared, StageWord.current, 0);
    const shared = this.#shared.buffer as SharedArrayBuffer;
    link.post({ type: "vocabulary", tokens: this.tokens(), vocabSize: this.vocabSize, shared });
    this.#lastAnswer = performance.now();
    return link;
  }

  /** Fails the matcher that the Worker was busy with, or all that wait, and makes the others again in a new Worker. */
  #restart(culprit: number, error: Error): void {
    void this.#link?.terminate();
    this.#accepted = [];
    const culprits = this.#live.has(culprit) ? [this.#live.get(culprit)!] : [...this.#live.values()];
    for (const matcher of culprits) if (matcher.isPending) matcher.fail(error);
    const others = [...this.#live.values()].filter((matcher) => matcher.error === undefined);
    this.#link = others.length > 0 ? this.#start() : undefined;
    for (const matcher of others) {
      // Memory of its own: the Worker that is ending may still write to the old.
      matcher.remake(MatcherMemory.allocate(this.vocabSize));
      this.#link!.post(openMessage(matcher));
    }
    this.#ring();
  }

  #accept(id: number, token: number): void {
    this.#accepted.push(id, token);
  }

  #close(id: number): void {
    if (!this.#live.delete(id)) return;
    this.#link?.post({ type: "close", id });
  }

  #ring(): void {
    this.#changed.resolve();
    this.#changed = Promise.withResolvers();
    this.#onChange();
  }

  /** Looks after the Worker for as long as an answer is due. */
  #watch(): void {
    if (this.#timer) return;
    this.#lastAnswer = performance.now();
    const look = () => {
      this.#timer = undefined;
      const isBusy = [...this.#live.values()].some(({ isPending }) => isPending);
      if (!isBusy) return;
      const left = this.#lastAnswer + this.#maxBusyMs - performance.now();
      if (left > 0) this.#timer = unreferenced(setTimeout(look, left));
      else {
        const message = "the grammar takes too long to be compiled or followed";
        this.#restart(
          Atomics.load(this.#shared, StageWord.current),
          new GrammarTooComplexError(PARAM, message),
        );
        this.#watch();
      }
    };
    this.#timer = unreferenced(setTimeout(look, this.#maxBusyMs));
  }
}

const ABORTED = "the grammar cannot be compiled";
const TOO_SLOW = "the grammar takes too long to be followed";

/** A process may end while its timer runs. */
function unreferenced(timer: Timer): Timer {
  timer.unref();
  return timer;
}

function openMessage({ id, init, tokens, memory }: Matcher): StageMessage {
  const { markers = [] } = init;
  return { type: "open", id, ...init, markers, tokens, memory: memory.buffer };
}

/** The text of one completion and a grammar: says which tokens may come next. */
export class Matcher {
  /** The tokens so far, for a Worker that begins anew. */
  readonly tokens: number[] = [];
  memory: MatcherMemory;
  #error: Error | undefined;
  #isDisposed = false;
  /** Number of tokens from which on its masks are worth waiting for. The first one takes as long as its grammar's compilation. */
  #patientFrom = 1;

  constructor(
    readonly id: number,
    readonly init: MatcherInit,
    memory: MatcherMemory,
    private readonly stage: { accepted(token: number): void; disposed(): void },
  ) {
    this.memory = memory;
  }

  /** The answer to the last token has not come yet. */
  get isPending(): boolean {
    return this.#error === undefined && this.memory.numAnswers !== this.tokens.length + 1;
  }

  /** Its answers take long: nobody waits for one. */
  get isSlow(): boolean {
    return this.tokens.length < this.#patientFrom;
  }

  /** The text is complete, and nothing may come after it. */
  get isComplete(): boolean {
    return !this.isPending && this.memory.state === AnswerState.complete;
  }

  /** Why there is no mask and will be none. */
  get error(): Error | undefined {
    if (this.#error || this.isPending) return this.#error;
    const { state } = this.memory;
    if (state === AnswerState.slow) this.#error = new GrammarTooComplexError(PARAM, TOO_SLOW);
    else if (state === AnswerState.refused)
      this.#error = new RequestFailedError(
        "a token was drawn that the grammar does not allow",
        "grammar_failed",
      );
    return this.#error;
  }

  /** Bit t % 32 of word t / 32: token t may come next. Until the next token is accepted. */
  get mask(): Uint32Array {
    return this.memory.mask;
  }

  /** The token that comes next. It is sent by the stage's `flush`. */
  accept(token: number): void {
    this.tokens.push(token);
    this.stage.accepted(token);
  }

  /** Safe to call twice. */
  dispose(): void {
    if (this.#isDisposed) return;
    this.#isDisposed = true;
    this.stage.disposed();
  }

  /** @internal The stage's: the mask did not come while it was waited for. */
  late(): void {
    this.#patientFrom = this.tokens.length + LATE_TOKENS;
  }

  /** @internal The stage's. */
  fail(error: Error): void {
    this.#error = error;
  }

  /** @internal The stage's: the answers come in other memory from here on. */
  remake(memory: MatcherMemory): void {
    this.memory = memory;
  }
}
