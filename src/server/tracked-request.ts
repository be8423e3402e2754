import { messageOf } from "../base/errors.ts";
import type { ApiError } from "./errors.ts";
import type { ServerMetrics } from "./metrics.ts";
import type { ServerConfig } from "./options.ts";
import type { RequestRecord, ServerLog } from "./request-log.ts";

const PRINTABLE = /^[\x20-\x7e]{1,128}$/;

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
  readonly #startedAt = performance.now();
  #finished = false;

  constructor(
    private readonly sinks: RequestSinks,
    private readonly request: Request,
    path: string,
  ) {
    this.record = { requestId: this.id, method: request.method, path: path.slice(0, 256) };
  }

  /** The value of the reply's `X-Request-Id` header. */
  get publicId(): string {
    const given = this.request.headers.get("x-request-id");
    return given !== null && PRINTABLE.test(given) ? given : this.id;
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
