import { GrammarTooComplexError, RequestFailedError } from "../base/errors.ts";
import { workerScript } from "../base/program-file.ts";
import { WorkerLink } from "../threads/worker-link.ts";
import type { PackedTokens } from "../tokenizer/token-table.ts";
import {
  AnswerState,
  MatcherMemory,
  STAGE_WORDS,
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
/**
 * A mask that a step waits for is late after a share of the time since the step before, within bounds in milliseconds. Where the
 * device computes meanwhile, nobody loses much of that time.
 */
const LATE_SHARE = { alone: 0.05, meanwhile: 0.5 };
const [LEAST_LATE_MS, MOST_LATE_MS] = [4, 20];
/** Tokens of a matcher that was late for which nobody waits. */
const LATE_TOKENS = 4;
/** Longest that a step waits for masks, in milliseconds: in a Worker that compiles another grammar they take as long as that does. */
const MAX_WAIT_MS = 50;
/** Longest that the Worker may be busy with one matcher, in milliseconds. */
const MAX_BUSY_MS = 15_000;
/** Times that it is looked for answers in that time. */
const LOOKS = 8;

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
  #shared = new Int32Array(new SharedArrayBuffer(4 * STAGE_WORDS));
  #link: WorkerLink<StageMessage, StageReply> | undefined;
  #changed = Promise.withResolvers<void>();
  #timer: Timer | undefined;
  /** The number of answers when it was last looked at, and the time when it last changed. */
  #watched = 0;
  #lastAnswer = 0;
  /** The number of answers that somebody has been told of by `changed`. */
  #heard = 0;
  #lastSettled = 0;
  #nextId = 1;
  #hasTold = false;

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
      accepted: () => {
        this.#hasTold = true;
      },
      disposed: () => this.#close(id),
    });
    this.#live.set(id, matcher);
    this.#link ??= this.#start();
    this.#post(openMessage(matcher));
    this.#watch();
    return matcher;
  }

  /** Sends the tokens that matchers have been told of since the last time. */
  flush(): void {
    if (!this.#hasTold) return;
    this.#hasTold = false;
    this.#ringBell();
    this.#watch();
  }

  /**
   * Waits for the masks that follow accepted tokens, of all matchers that are not slow. Blocks the thread, but not for long: a
   * matcher whose mask is late is slow for a while, and one whose mask does not come stays pending.
   * @param isIdle the device computes nothing meanwhile
   * @param now the time from which on it is waited
   */
  settle(isIdle: boolean, now = performance.now()): void {
    const share = (isIdle ? LATE_SHARE.alone : LATE_SHARE.meanwhile) * (now - this.#lastSettled);
    const late = now + Math.min(Math.max(share, LEAST_LATE_MS), MOST_LATE_MS);
    this.#lastSettled = now;
    for (const matcher of [...this.#live.values()].filter(({ isSlow }) => !isSlow)) {
      while (matcher.isPending) {
        const seen = Atomics.load(this.#shared, StageWord.answers);
        if (!matcher.isPending) break;
        const time = performance.now();
        if (time >= late) matcher.late();
        const left = now + MAX_WAIT_MS - time;
        if (left <= 0) break;
        Atomics.wait(this.#shared, StageWord.answers, seen, time < late ? late - time : left);
      }
    }
  }

  /** Resolves when some matcher may have been answered. */
  changed(): Promise<void> {
    const { promise } = this.#changed;
    Atomics.store(this.#shared, StageWord.listens, 1);
    // Those that came before the Worker could know that somebody listens.
    const answers = Atomics.load(this.#shared, StageWord.answers);
    if (answers !== this.#heard) this.#ring();
    this.#heard = answers;
    return promise;
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
    // Memory of its own: the Worker that is ending may still write to the old.
    this.#shared = new Int32Array(new SharedArrayBuffer(4 * STAGE_WORDS));
    [this.#watched, this.#heard] = [0, 0];
    this.#lastAnswer = performance.now();
    const shared = this.#shared.buffer as SharedArrayBuffer;
    link.post({ type: "vocabulary", tokens: this.tokens(), vocabSize: this.vocabSize, shared });
    return link;
  }

  /** Fails the matcher that the Worker was busy with, or all that wait, and makes the others again in a new Worker. */
  #restart(culprit: number, error: Error): void {
    void this.#link?.terminate();
    const culprits = this.#live.has(culprit) ? [this.#live.get(culprit)!] : [...this.#live.values()];
    for (const matcher of culprits) if (matcher.isPending) matcher.fail(error);
    const others = [...this.#live.values()].filter((matcher) => matcher.error === undefined);
    this.#link = others.length > 0 ? this.#start() : undefined;
    for (const matcher of others) {
      matcher.remake(MatcherMemory.allocate(this.vocabSize));
      this.#post(openMessage(matcher));
    }
    this.#ring();
  }

  #close(id: number): void {
    if (this.#live.delete(id)) this.#post({ type: "close", id });
  }

  #post(message: StageMessage): void {
    if (!this.#link) return;
    this.#link.post(message);
    Atomics.add(this.#shared, StageWord.messages, 1);
    this.#ringBell();
  }

  #ringBell(): void {
    Atomics.add(this.#shared, StageWord.bell, 1);
    Atomics.notify(this.#shared, StageWord.bell);
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
      const answers = Atomics.load(this.#shared, StageWord.answers);
      if (answers !== this.#watched) this.#lastAnswer = performance.now();
      this.#watched = answers;
      const left = this.#lastAnswer + this.#maxBusyMs - performance.now();
      if (left > 0) this.#timer = unreferenced(setTimeout(look, Math.min(left, this.#maxBusyMs / LOOKS)));
      else {
        const message = "the grammar takes too long to be compiled or followed";
        this.#restart(
          Atomics.load(this.#shared, StageWord.current),
          new GrammarTooComplexError(PARAM, message),
        );
        this.#watch();
      }
    };
    this.#timer = unreferenced(setTimeout(look, this.#maxBusyMs / LOOKS));
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
    private readonly stage: { accepted(): void; disposed(): void },
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

  /** The mask is the same for as long as it is the same array and this the same number. */
  get maskVersion(): number {
    return this.memory.version;
  }

  /** The token that comes next, after the answer to the one before. The stage's `flush` lets its Worker know. */
  accept(token: number): void {
    this.memory.tell(this.tokens.push(token), token);
    this.stage.accepted();
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
    memory.tell(this.tokens.length, this.tokens.at(-1) ?? 0);
    this.memory = memory;
  }
}
