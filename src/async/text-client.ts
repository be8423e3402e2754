import type { EngineConfig } from "../base/config.ts";
import { InvalidRequestError, messageOf, RequestFailedError } from "../base/errors.ts";
import { decodeError } from "./error-codec.ts";
import { WorkerLink } from "./worker-link.ts";
import type { OpenTextMessage, TextJobName, TextJobs, TextMessage, TextReply } from "./worker-protocol.ts";

/** The largest text that a server takes is done in a few seconds; what takes this long does not end, such as a regex. */
const JOB_DEADLINE_MS = 30_000;

type TextLink = WorkerLink<OpenTextMessage | TextMessage, TextReply>;

/**
 * The main thread's side of the text worker. When the worker dies, or a job keeps it busy past the deadline, the jobs it
 * had fail with RequestFailedError and the next job starts a new one.
 */
export class TextClient {
  readonly #pending = new Map<number, PromiseWithResolvers<unknown>>();
  #link: TextLink | undefined;
  /** The first message to each worker, once the folder is known. */
  #opening: OpenTextMessage | undefined;
  #nextCall = 0;
  #closed: Error | undefined;
  /** Runs while jobs are pending, from the last sign of life. */
  #deadline: Timer | undefined;

  /** Starts the worker. @param deadline milliseconds for each job. */
  constructor(
    private readonly url: URL,
    private readonly config: EngineConfig,
    private readonly deadline = JOB_DEADLINE_MS,
  ) {
    this.#link = this.#start();
  }

  /** Loads the tokenizer of the model in `folder`. Jobs are for afterwards. @throws as `loadTokenizer` and `createPromptEncoder`. */
  async open(folder: string): Promise<void> {
    this.#opening = { folder, config: this.config };
    this.#link?.post(this.#opening);
    await this.call("open", undefined);
  }

  /** @throws what the job throws, RequestFailedError if it failed for another reason than its input. */
  call<K extends TextJobName>(
    job: K,
    input: TextJobs[K]["input"],
    transfer: ArrayBuffer[] = [],
  ): Promise<TextJobs[K]["output"]> {
    if (this.#closed) return Promise.reject(this.#closed);
    const call = this.#nextCall++;
    try {
      this.#link ??= this.#start();
      this.#link.post({ call, job, input }, transfer);
    } catch (error) {
      const message = `the prompt holds something that is not data: ${messageOf(error)}`;
      return Promise.reject(new InvalidRequestError("prompt", message));
    }
    const reply = Promise.withResolvers<unknown>();
    this.#pending.set(call, reply);
    if (this.#pending.size === 1) this.#watch();
    return reply.promise as Promise<TextJobs[K]["output"]>;
  }

  /** Pending and later jobs fail with `reason`. */
  async close(reason: Error): Promise<void> {
    this.#closed ??= reason;
    this.#failPending(this.#closed);
    await this.#link?.terminate();
  }

  #start(): TextLink {
    const link: TextLink = new WorkerLink(this.url);
    link.onMessage = (reply) => {
      const pending = this.#pending.get(reply.call);
      this.#pending.delete(reply.call);
      if ("error" in reply) pending?.reject(decodeError(reply.error));
      else pending?.resolve(reply.output);
      this.#watch();
    };
    link.onEnd = (reason) => {
      this.#link = undefined;
      this.#failPending(new RequestFailedError(`the text worker died: ${reason}`, "text_failed"));
    };
    if (this.#opening) link.post(this.#opening);
    return link;
  }

  #failPending(reason: Error): void {
    for (const { reject } of this.#pending.values()) reject(reason);
    this.#pending.clear();
    this.#watch();
  }

  /** Gives the worker the deadline anew if it has jobs. */
  #watch(): void {
    clearTimeout(this.#deadline);
    if (this.#pending.size > 0) this.#deadline = setTimeout(() => this.#abandon(), this.deadline);
  }

  #abandon(): void {
    void this.#link?.terminate();
    this.#link = undefined;
    const message = `preparing the text took longer than ${this.deadline / 1000} s`;
    this.#failPending(new RequestFailedError(message, "text_timeout"));
  }
}
