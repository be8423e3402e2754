import { ApiError, overloaded } from "./errors.ts";

/** What ends a request from outside. */
export interface ScopeOptions {
  /** Aborted when the client has gone. */
  readonly client: AbortSignal;
  /** Aborted, with the reason as an `ApiError`, when the server stops. */
  readonly cutoff: AbortSignal;
  readonly requestTimeoutSeconds: number;
  readonly queueTimeoutSeconds: number;
  /** Whether anything of the request has been computed. */
  readonly started: () => boolean;
}

/** How long a request may live: until its client leaves, its time is up or the server stops. */
export class RequestScope implements Disposable {
  readonly #controller = new AbortController();
  readonly #timers: readonly ReturnType<typeof setTimeout>[];
  readonly #release: () => void;

  constructor({ client, cutoff, started, requestTimeoutSeconds, queueTimeoutSeconds }: ScopeOptions) {
    const onClient = () => this.abort(clientClosed());
    const onCutoff = () => this.abort(cutoff.reason as ApiError);
    client.addEventListener("abort", onClient);
    cutoff.addEventListener("abort", onCutoff);
    this.#release = () => {
      client.removeEventListener("abort", onClient);
      cutoff.removeEventListener("abort", onCutoff);
    };
    this.#timers = [
      setTimeout(() => this.abort(timedOut(requestTimeoutSeconds)), requestTimeoutSeconds * 1000),
      setTimeout(() => {
        if (!started()) this.abort(queuedTooLong(queueTimeoutSeconds));
      }, queueTimeoutSeconds * 1000),
    ];
    if (client.aborted) onClient();
    if (cutoff.aborted) onCutoff();
  }

  /** Its reason is an `ApiError`. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** Ends the request; the first reason stays. */
  abort(reason: ApiError): void {
    this.#controller.abort(reason);
  }

  [Symbol.dispose](): void {
    for (const timer of this.#timers) clearTimeout(timer);
    this.#release();
  }
}

export function clientClosed(): ApiError {
  return new ApiError(499, "client_closed_request", "the client closed the connection");
}

function timedOut(seconds: number): ApiError {
  return new ApiError(504, "timeout", `the request took more than ${seconds} s`);
}

function queuedTooLong(seconds: number): ApiError {
  return overloaded("queue_timeout", `the request waited more than ${seconds} s to be started`);
}
