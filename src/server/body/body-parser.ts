import { RequestFailedError } from "../../base/errors.ts";
import { workerScript } from "../../base/program-file.ts";
import { decodeError } from "../../threads/error-codec.ts";
import { WorkerLink } from "../../threads/worker-link.ts";
import { ApiError } from "../errors.ts";
import type { BodyLimits } from "../schemas/request-body.ts";
import type { BodyJob, BodyReply } from "./body-protocol.ts";
import { type ParsedRequest, parseRequest, type RequestKind } from "./parse-request.ts";

/** Up to this many bytes a body is parsed at once, in about a millisecond at worst: a Worker would take longer to ask. */
const MAX_INLINE_BYTES = 16 * 1024;
/** Bodies above it have a Worker of their own, so that they keep nobody else waiting. */
const LONG_BYTES = 256 * 1024;

const WORKER = workerScript("src/server/body/body-worker.ts");

/**
 * Parses and checks bodies. This thread's work does not grow with them: what is more than a few kilobytes goes to one of two
 * Workers, which are started when they are first needed and do not keep the process alive.
 */
export class BodyParser implements AsyncDisposable {
  readonly #short: Lane;
  readonly #long: Lane;

  constructor(
    private readonly limits: BodyLimits,
    worker = WORKER,
  ) {
    this.#short = new Lane(worker);
    this.#long = new Lane(worker);
  }

  /**
   * @param bytes unusable afterwards.
   * @throws ApiError naming the field; RequestFailedError if a Worker failed.
   */
  async parse<K extends RequestKind>(kind: K, bytes: Uint8Array<ArrayBuffer>): Promise<ParsedRequest<K>> {
    const { limits } = this;
    if (bytes.length <= MAX_INLINE_BYTES) return parseRequest(kind, bytes, limits);
    const lane = bytes.length > LONG_BYTES ? this.#long : this.#short;
    return (await lane.run({ kind, bytes, limits })) as ParsedRequest<K>;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([this.#short.stop(), this.#long.stop()]);
  }
}

/** One Worker and the jobs that it has. */
class Lane {
  readonly #pending = new Map<number, PromiseWithResolvers<ParsedRequest<RequestKind>>>();
  #link: WorkerLink<BodyJob, BodyReply> | undefined;
  #nextJob = 0;

  constructor(private readonly worker: URL) {}

  run(input: Omit<BodyJob, "job">): Promise<ParsedRequest<RequestKind>> {
    this.#link ??= this.#start();
    const job = this.#nextJob++;
    const reply = Promise.withResolvers<ParsedRequest<RequestKind>>();
    this.#pending.set(job, reply);
    this.#link.post({ job, ...input }, [input.bytes.buffer]);
    return reply.promise;
  }

  async stop(): Promise<void> {
    this.#fail("the server has stopped");
    await this.#link?.terminate();
    this.#link = undefined;
  }

  #start(): WorkerLink<BodyJob, BodyReply> {
    const link = new WorkerLink<BodyJob, BodyReply>(this.worker, { keepsAlive: false });
    link.onMessage = (reply) => {
      const pending = this.#pending.get(reply.job);
      this.#pending.delete(reply.job);
      if ("parsed" in reply) pending?.resolve(reply.parsed);
      else if ("error" in reply) pending?.reject(decodeError(reply.error));
      else {
        const { status, code, message, param, headers } = reply.refusal;
        pending?.reject(new ApiError(status, code, message, param, headers));
      }
    };
    link.onEnd = (reason) => {
      this.#link = undefined;
      this.#fail(`the Worker that parses bodies died: ${reason}`);
    };
    return link;
  }

  #fail(reason: string): void {
    for (const { reject } of this.#pending.values()) reject(new RequestFailedError(reason, "body_failed"));
    this.#pending.clear();
  }
}
