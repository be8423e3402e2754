import type { EngineConfig } from "../base/config.ts";
import { InvalidRequestError, messageOf, RequestFailedError } from "../base/errors.ts";
import { decodeError } from "./error-codec.ts";
import { WorkerLink } from "./worker-link.ts";
import type { OpenTextMessage, TextJobName, TextJobs, TextMessage, TextReply } from "./worker-protocol.ts";

type TextLink = WorkerLink<OpenTextMessage | TextMessage, TextReply>;

/**
 * The main thread's side of the text worker. When the worker dies, the jobs it had fail with RequestFailedError and the
 * next job starts a new one.
 */
export class TextClient {
  readonly #pending = new Map<number, PromiseWithResolvers<unknown>>();
  #link: TextLink | undefined;
  #nextCall = 0;
  #closed: Error | undefined;

  /** Resolves once the tokenizer is loaded. @throws what `loadText` throws. */
  static async start(url: URL, folder: string, config: EngineConfig): Promise<TextClient> {
    const client = new TextClient(url, { folder, config });
    try {
      await client.call("open", undefined);
      return client;
    } catch (error) {
      await client.close(new RequestFailedError("the tokenizer is not loaded", "text_failed"));
      throw error;
    }
  }

  private constructor(
    private readonly url: URL,
    private readonly opening: OpenTextMessage,
  ) {}

  /** @throws what the job throws, RequestFailedError if it failed for another reason than its input. */
  call<K extends TextJobName>(job: K, input: TextJobs[K]["input"]): Promise<TextJobs[K]["output"]> {
    if (this.#closed) return Promise.reject(this.#closed);
    const call = this.#nextCall++;
    try {
      this.#link ??= this.#open();
      this.#link.post({ call, job, input });
    } catch (error) {
      const message = `the prompt holds something that is not data: ${messageOf(error)}`;
      return Promise.reject(new InvalidRequestError("prompt", message));
    }
    const reply = Promise.withResolvers<unknown>();
    this.#pending.set(call, reply);
    return reply.promise as Promise<TextJobs[K]["output"]>;
  }

  /** Pending and later jobs fail with `reason`. */
  async close(reason: Error): Promise<void> {
    this.#closed ??= reason;
    this.#failPending(this.#closed);
    await this.#link?.terminate();
  }

  #open(): TextLink {
    const link: TextLink = new WorkerLink(this.url);
    link.onMessage = (reply) => {
      const pending = this.#pending.get(reply.call);
      this.#pending.delete(reply.call);
      if ("error" in reply) pending?.reject(decodeError(reply.error));
      else pending?.resolve(reply.output);
    };
    link.onEnd = (reason) => {
      this.#link = undefined;
      this.#failPending(new RequestFailedError(`the text worker died: ${reason}`, "text_failed"));
    };
    link.post(this.opening);
    return link;
  }

  #failPending(reason: Error): void {
    for (const { reject } of this.#pending.values()) reject(reason);
    this.#pending.clear();
  }
}
