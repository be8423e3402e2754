import { InvalidRequestError, messageOf, RequestFailedError } from "../base/errors.ts";
import { decodeError } from "../threads/error-codec.ts";
import { WorkerLink } from "../threads/worker-link.ts";
import type { TextMessage, TextReply } from "./worker-protocol.ts";

/** A text worker. It does one job at a time, so that of those that wait none shares the fate of the one that it has. */
export class TextThread {
  readonly #link: WorkerLink<TextMessage, TextReply>;
  #job: PromiseWithResolvers<unknown> | undefined;
  #deadline: Timer | undefined;
  #end: Error | undefined;

  /** Starts the Worker. */
  constructor(url: URL) {
    this.#link = new WorkerLink(url);
    this.#link.onMessage = (reply) => {
      const job = this.#finish();
      if ("error" in reply) job?.reject(decodeError(reply.error));
      else job?.resolve(reply.output);
    };
    this.#link.onEnd = (reason) =>
      this.#fail(new RequestFailedError(`the text worker died: ${reason}`, "text_failed"));
  }

  get isFree(): boolean {
    return this.#job === undefined && this.#end === undefined;
  }

  get hasEnded(): boolean {
    return this.#end !== undefined;
  }

  /**
   * Does a job, if this thread is free. When the Worker dies over it, or takes longer than the deadline, the thread has
   * ended.
   * @param deadline milliseconds; default none.
   * @throws what the job throws; InvalidRequestError for what cannot be sent; RequestFailedError if the thread ended.
   */
  run(message: TextMessage, deadline?: number): Promise<unknown> {
    if (this.#end) return Promise.reject(this.#end);
    try {
      this.#link.post(message);
    } catch (error) {
      return Promise.reject(notData(error));
    }
    this.#job = Promise.withResolvers();
    if (deadline !== undefined) {
      const reason = `preparing the text took longer than ${deadline / 1000} s`;
      const end = () => void this.terminate(new RequestFailedError(reason, "text_timeout"));
      this.#deadline = setTimeout(end, deadline);
    }
    return this.#job.promise;
  }

  /** Ends the Worker; its job fails with `reason`. Safe to call twice. */
  terminate(reason: Error): Promise<void> {
    this.#fail(reason);
    return this.#link.terminate();
  }

  #fail(reason: Error): void {
    this.#end ??= reason;
    this.#finish()?.reject(reason);
  }

  /** The job that the thread had, which now has none. */
  #finish(): PromiseWithResolvers<unknown> | undefined {
    clearTimeout(this.#deadline);
    const job = this.#job;
    this.#job = undefined;
    return job;
  }
}

/** The refusal of a job whose input cannot be cloned, which fails with `error`. */
export function notData(error: unknown): InvalidRequestError {
  const message = `the prompt holds something that is not data: ${messageOf(error)}`;
  return new InvalidRequestError("prompt", message);
}
