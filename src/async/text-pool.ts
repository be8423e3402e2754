import { availableParallelism } from "node:os";
import type { EngineConfig } from "../base/config.ts";
import { isLargerThan } from "../base/data-size.ts";
import { notData, TextThread } from "./text-thread.ts";
import type { TextInfo, TextJobName, TextJobs, TextMessage } from "./worker-protocol.ts";

/** Characters and entries past which a job counts as long: some 50 ms of tokenization. */
const MAX_SHORT = 2 ** 15;

/** The largest text that a server takes is done in a few seconds; what takes this long does not end, such as a regex. */
const JOB_DEADLINE_MS = 30_000;

const PATIENCE_MS = 100;

export interface TextPoolOptions {
  /** Milliseconds that a worker may take for a job. Default 30 s. */
  readonly deadline?: number | undefined;
  /** Milliseconds that a short job waits before another worker is started. Default 100. */
  readonly patience?: number | undefined;
  /** Most workers, two at least; each has a tokenizer of its own. Default a quarter of the processors, from 2 to 4. */
  readonly size?: number | undefined;
}

interface WaitingJob extends PromiseWithResolvers<unknown> {
  message: TextMessage;
  /** Milliseconds on this thread's clock. */
  readonly arrival: number;
}

/**
 * The main thread's side of the text workers. One of them does short jobs alone, so that these never stand behind a long
 * one; the others do whatever came first. The one is started at once, another when a long job finds none free, or a short
 * one has waited a while. A job that kills its worker, or does not end, fails alone.
 */
export class TextPool {
  readonly #short: WaitingJob[] = [];
  readonly #long: WaitingJob[] = [];
  /** Does short jobs alone. */
  #express: TextThread;
  readonly #others = new Set<TextThread>();
  /** Those of the others that have no tokenizer yet. */
  readonly #opening = new Set<TextThread>();
  readonly #deadline: number;
  readonly #patience: number;
  readonly #mostOthers: number;
  /** The model's folder or file, once it is known. */
  #folder: string | undefined;
  /** Runs while a short job waits and another worker could be started. */
  #growing: Timer | undefined;
  #closed: Error | undefined;

  /** Starts the first worker, which has nothing to load yet. */
  constructor(
    private readonly url: URL,
    private readonly config: EngineConfig,
    options: TextPoolOptions = {},
  ) {
    const { deadline = JOB_DEADLINE_MS, patience = PATIENCE_MS, size = defaultSize() } = options;
    this.#deadline = deadline;
    this.#patience = patience;
    this.#mostOthers = size - 1;
    this.#express = new TextThread(url);
  }

  /** Loads the tokenizer of the model in `folder`. Jobs are for afterwards. @throws as `loadTokenizer` and `createPromptEncoder`. */
  async open(folder: string): Promise<TextInfo> {
    this.#folder = folder;
    return (await this.#express.run(this.#openMessage())) as TextInfo;
  }

  /**
   * @param input what becomes of it after the call has no effect
   * @throws what the job throws, RequestFailedError if it failed for another reason than its input.
   */
  async call<K extends TextJobName>(job: K, input: TextJobs[K]["input"]): Promise<TextJobs[K]["output"]> {
    if (this.#closed) throw this.#closed;
    const waiting = { ...Promise.withResolvers(), message: { job, input }, arrival: performance.now() };
    const queue = isLargerThan(MAX_SHORT, input) ? this.#long : this.#short;
    queue.push(waiting);
    this.#dispatch();
    if (queue.at(-1) === waiting) {
      try {
        waiting.message = structuredClone(waiting.message);
      } catch (error) {
        queue.pop();
        throw notData(error);
      }
    }
    return waiting.promise as Promise<TextJobs[K]["output"]>;
  }

  /** Pending and later jobs fail with `reason`. */
  async close(reason: Error): Promise<void> {
    this.#closed ??= reason;
    clearTimeout(this.#growing);
    for (const queue of [this.#short, this.#long])
      for (const { reject } of queue.splice(0)) reject(this.#closed);
    await Promise.all(this.#threads().map((thread) => thread.terminate(this.#closed!)));
  }

  #threads(): readonly TextThread[] {
    return [this.#express, ...this.#others];
  }

  /** Gives waiting jobs to workers that are free, and starts workers for those that find none. */
  #dispatch(): void {
    if (this.#closed) return;
    for (const thread of this.#others) if (thread.hasEnded) this.#others.delete(thread);
    if (this.#express.hasEnded && this.#short.length > 0) {
      this.#express = new TextThread(this.url);
      void this.#openThread(this.#express);
    }
    for (const thread of this.#threads()) {
      const job = thread.isFree ? this.#next(thread) : undefined;
      if (job) void this.#run(thread, job);
    }
    this.#grow();
  }

  async #run(thread: TextThread, { message, resolve, reject }: WaitingJob): Promise<void> {
    await thread.run(message, this.#deadline).then(resolve, reject);
    this.#dispatch();
  }

  /** Takes the job that is the thread's to do out of its queue. */
  #next(thread: TextThread): WaitingJob | undefined {
    const isLongNext = (this.#long[0]?.arrival ?? Infinity) < (this.#short[0]?.arrival ?? Infinity);
    return thread !== this.#express && isLongNext ? this.#long.shift() : this.#short.shift();
  }

  #grow(): void {
    const longest = this.#short.length > 0 ? performance.now() - this.#short[0]!.arrival : 0;
    const wanted = this.#long.length + (longest >= this.#patience ? 1 : 0);
    while (this.#opening.size < wanted && this.#others.size < this.#mostOthers) {
      const thread = new TextThread(this.url);
      this.#others.add(thread);
      this.#opening.add(thread);
      void this.#openThread(thread);
    }
    clearTimeout(this.#growing);
    if (this.#short.length > 0 && this.#others.size < this.#mostOthers)
      this.#growing = setTimeout(() => this.#dispatch(), Math.max(1, this.#patience - longest));
  }

  /** Opens a worker after the first. If that fails, so does one job that it would have done. */
  async #openThread(thread: TextThread): Promise<void> {
    try {
      await thread.run(this.#openMessage());
    } catch (error) {
      void thread.terminate(error as Error);
      this.#next(thread)?.reject(error);
    }
    this.#opening.delete(thread);
    this.#dispatch();
  }

  #openMessage(): TextMessage<"open"> {
    return { job: "open", input: { folder: this.#folder!, config: this.config } };
  }
}

function defaultSize(): number {
  return Math.min(4, Math.max(2, Math.floor(availableParallelism() / 4)));
}
