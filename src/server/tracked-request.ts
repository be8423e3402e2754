import { messageOf } from "../base/errors.ts";
import type { ApiError } from "./errors.ts";
import { headerOf } from "./header.ts";
import type { ServerMetrics } from "./metrics.ts";
import type { ServerConfig } from "./options.ts";
import type { RequestRecord, ServerLog } from "./request-log.ts";

/** Longest id of a client's own, in characters. */
const MAX_ID = 128;
const PRINTABLE = new RegExp(`^[\\x20-\\x7e]{1,${MAX_ID}}$`);

/** The metrics that count requests and the log that lists them. */
export interface RequestSinks {
  readonly config: ServerConfig;
  readonly metrics: ServerMetrics;
  readonly log: ServerLog;
}

/** One HTTP request and its reply as the log and the metrics see them. */
export class TrackedRequest {
  /** Chosen here, whatever the client calls its request. */
  readonly id = crypto.randomUUID().replaceAll("-", "");
  readonly record: RequestRecord;
  /** Path of the route that serves it. */
  handler = "none";
  /** Set by a handler whose reply goes on after it has returned; the reply then calls `finish`. */
  streaming = false;
  /** The `X-Request-Id` that the request brought. */
  readonly #clientId: string | undefined;
  readonly #startedAt = performance.now();
  #finished = false;

  constructor(
    private readonly sinks: RequestSinks,
    { method, headers }: Request,
    path: string,
  ) {
    this.#clientId = headerOf(headers, "x-request-id");
    this.record = {
      requestId: this.id,
      ...(this.#clientId !== undefined && { clientRequestId: this.#clientId.slice(0, MAX_ID) }),
      ...{ method, path: path.slice(0, 256) },
    };
  }

  /** The value of the reply's `X-Request-Id` header. */
  get publicId(): string {
    return this.#usableId ?? this.id;
  }

  /**
   * The reply's id behind its prefix: the request's `X-Request-Id` where such headers are enabled, or the
   * `request_id` of its body, or the id chosen here.
   */
  replyId(requestId: string | null | undefined): string {
    const fromHeader = this.sinks.config.enableRequestIdHeaders ? this.#usableId : undefined;
    return fromHeader ?? requestId ?? this.id;
  }

  get #usableId(): string | undefined {
    return this.#clientId !== undefined && PRINTABLE.test(this.#clientId) ? this.#clientId : undefined;
  }

  /** Puts a failure's cause, which the client is not told, into the log line. A refusal's message could quote the prompt. */
  failed(error: unknown, { code, param, status }: ApiError): void {
    const cause = error instanceof Error && error.cause !== undefined ? ` (${messageOf(error.cause)})` : "";
    const details = status >= 500 ? `${messageOf(error)}${cause}` : (param ?? "");
    this.record.error = details === "" ? code : `${code}: ${details}`;
  }

  /** Counts and logs it, once. */
  finish(status: number): void {
    if (this.#finished) return;
    this.#finished = true;
    const { metrics, config, log } = this.sinks;
    metrics.countRequest(this.handler, status);
    if (!config.logRequests) return;
    const milliseconds = Math.round(performance.now() - this.#startedAt);
    log.write("request", { ...this.record, status, milliseconds });
  }
}
