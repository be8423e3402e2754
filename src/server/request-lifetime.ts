import type { RequestContext, ServerContext } from "./context.ts";
import { ApiError, overloaded } from "./errors.ts";

/** Bun's own limit of silence on a connection, in seconds. */
const IDLE_SECONDS = 10;

/** The conditions that end a request from outside. */
export interface LifetimeOptions {
  /** Aborted when the client has gone. */
  readonly client: AbortSignal;
  /** Aborted, with the reason as an `ApiError`, when the server stops. */
  readonly cutoff: AbortSignal;
  readonly requestTimeoutSeconds: number;
  readonly queueTimeoutSeconds: number;
  /** True once anything of the request has been computed. */
  readonly started: () => boolean;
  /** Called when the lifetime is disposed of. */
  readonly onClose: () => void;
}

/**
 * Counts a request in until its lifetime is disposed of. Meanwhile Bun does not close a silent connection; before and
 * afterwards it does, so that nobody can hold connections without a request.
 * @throws ApiError as `Admission.admit`.
 */
export function admitRequest(
  c: RequestContext,
  context: ServerContext,
  completions: number,
  started: () => boolean,
): RequestLifetime {
  return openLifetime(c, context, context.admission.admit(c.get("caller").keyId, completions), started);
}

/** The same for a request that only needs the tokenizer. @throws ApiError as `Admission.admitText`. */
export function admitTextRequest(c: RequestContext, context: ServerContext): RequestLifetime {
  return openLifetime(c, context, context.admission.admitText(c.get("caller").keyId), () => false);
}

function openLifetime(
  c: RequestContext,
  { admission, config }: ServerContext,
  leave: () => void,
  started: () => boolean,
): RequestLifetime {
  const allowSilence = (seconds: number) => c.env?.server?.timeout(c.req.raw, seconds);
  allowSilence(0);
  const { requestTimeoutSeconds, queueTimeoutSeconds } = config;
  return new RequestLifetime({
    ...{ client: c.req.raw.signal, cutoff: admission.cutoff },
    ...{ requestTimeoutSeconds, queueTimeoutSeconds, started },
    onClose: () => {
      leave();
      allowSilence(IDLE_SECONDS);
    },
  });
}

/** A request's life: it ends when its client leaves, its time is up, or the server stops. */
export class RequestLifetime implements Disposable {
  readonly #controller = new AbortController();
  readonly #timers: readonly ReturnType<typeof setTimeout>[];
  readonly #release: () => void;

  constructor(options: LifetimeOptions) {
    const { client, cutoff, started, requestTimeoutSeconds, queueTimeoutSeconds } = options;
    const onClient = () => this.abort(clientClosed());
    const onCutoff = () => this.abort(cutoff.reason as ApiError);
    client.addEventListener("abort", onClient);
    cutoff.addEventListener("abort", onCutoff);
    this.#release = () => {
      client.removeEventListener("abort", onClient);
      cutoff.removeEventListener("abort", onCutoff);
      options.onClose();
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

  /** Aborted when the request ends; its reason is an `ApiError`. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** Ends the request; the first reason stays. */
  abort(reason: ApiError): void {
    this.#controller.abort(reason);
  }

  /**
   * Waits for the promise's value.
   * @throws the abort's reason if the request ends before.
   */
  async race<T>(promise: Promise<T>): Promise<T> {
    const ended = Promise.withResolvers<never>();
    const onAbort = () => ended.reject(this.signal.reason);
    this.signal.addEventListener("abort", onAbort);
    if (this.signal.aborted) onAbort();
    return Promise.race([promise, ended.promise]).finally(() =>
      this.signal.removeEventListener("abort", onAbort),
    );
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
