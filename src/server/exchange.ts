import { messageOf } from "../base/errors.ts";
import type { ApiError } from "./errors.ts";
import type { ServerMetrics } from "./metrics.ts";
import type { ServerConfig } from "./options.ts";
import type { RequestRecord, ServerLog } from "./request-log.ts";

const PRINTABLE = /^[\x20-\x7e]{1,128}$/;

/** Where exchanges are counted and written down. */
export interface ExchangeSinks {
  readonly config: ServerConfig;
  readonly metrics: ServerMetrics;
  readonly log: ServerLog;
}

/** One request and its reply, for the log and the metrics. */
export class Exchange {
  /** Ours alone, whatever the client calls its request. */
  readonly id = crypto.randomUUID().replaceAll("-", "");
  readonly record: RequestRecord;
  /** The route that serves it. */
  handler = "none";
  /** Its reply goes on after the handler has returned, which then calls `finish`. */
  streaming = false;
  readonly #startedAt = performance.now();
  #finished = false;

  constructor(
    private readonly sinks: ExchangeSinks,
    private readonly request: Request,
    path: string,
  ) {
    this.record = { requestId: this.id, method: request.method, path: path.slice(0, 256) };
  }

  /** For the `X-Request-Id` header of the reply. */
  get publicId(): string {
    const given = this.request.headers.get("x-request-id");
    return given !== null && PRINTABLE.test(given) ? given : this.id;
  }

  /** Keeps what a failure came from, which the client is not told. A refusal's message could quote the prompt. */
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
