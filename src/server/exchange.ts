import { messageOf } from "../base/errors.ts";
import type { ServerContext } from "./context.ts";
import type { ApiError } from "./errors.ts";
import type { RequestRecord } from "./request-log.ts";

const PRINTABLE = /^[\x20-\x7e]{1,128}$/;

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
    private readonly context: ServerContext,
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
    const { metrics, config, log } = this.context;
    metrics.countRequest(this.handler, status);
    if (!config.logRequests) return;
    const milliseconds = Math.round(performance.now() - this.#startedAt);
    log.write("request", { ...this.record, status, milliseconds });
  }
}
