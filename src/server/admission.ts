import { ApiError, invalidValue, overloaded } from "./errors.ts";

export interface AdmissionLimits {
  /** Completions under way at once, running or queued. */
  readonly maxCompletions: number;
  /** Requests under way at once by one key; 0: no limit. */
  readonly maxConcurrentPerKey: number;
}

/** The server's gate: counts requests and completions under way, and refuses more than the limits allow. */
export class Admission {
  readonly #cutoff = new AbortController();
  readonly #perKey = new Map<string, number>();
  #requests = 0;
  #completions = 0;
  #closed = false;
  #onIdle: (() => void) | undefined;

  constructor(private readonly limits: AdmissionLimits) {}

  /** Requests under way, their replies included. */
  get numRequests(): number {
    return this.#requests;
  }

  /** Whether requests are no longer taken on. */
  get closed(): boolean {
    return this.#closed;
  }

  /** Aborted when the requests under way have run out of time to finish. */
  get cutoff(): AbortSignal {
    return this.#cutoff.signal;
  }

  /**
   * Counts a request in until the returned function is called.
   * @throws ApiError 503 `shutting_down` or `overloaded`, 429 `too_many_requests`, 400 if it could never be admitted.
   */
  admit(keyId: string, completions: number): () => void {
    const { maxCompletions, maxConcurrentPerKey } = this.limits;
    if (this.#closed) throw overloaded("shutting_down", "the server is shutting down");
    if (completions > maxCompletions)
      throw invalidValue("n", `${completions} completions, at most ${maxCompletions} are allowed`);
    if (this.#completions + completions > maxCompletions)
      throw overloaded("overloaded", "too many requests are waiting");
    const ofKey = this.#perKey.get(keyId) ?? 0;
    if (maxConcurrentPerKey > 0 && ofKey >= maxConcurrentPerKey) {
      const message = `${ofKey} requests of this key are under way, at most ${maxConcurrentPerKey} are allowed`;
      throw new ApiError(429, "too_many_requests", message, null, { "Retry-After": "1" });
    }
    this.#add(keyId, completions, 1);
    let left = false;
    return () => {
      if (!left) this.#add(keyId, -completions, -1);
      left = true;
    };
  }

  /** Takes no more requests on, and waits until those under way are done or, after `seconds`, cuts them off. */
  async drain(seconds: number): Promise<void> {
    this.#closed = true;
    if (await this.#idle(seconds)) return;
    this.#cutoff.abort(overloaded("shutting_down", "the server is shutting down"));
    await this.#idle(1);
  }

  /** Whether no request is left within `seconds`. */
  async #idle(seconds: number): Promise<boolean> {
    if (this.#requests === 0) return true;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#onIdle = resolve;
    const timer = setTimeout(resolve, seconds * 1000);
    await promise;
    clearTimeout(timer);
    return this.#requests === 0;
  }

  #add(keyId: string, completions: number, requests: 1 | -1): void {
    this.#requests += requests;
    this.#completions += completions;
    const ofKey = (this.#perKey.get(keyId) ?? 0) + requests;
    if (ofKey === 0) this.#perKey.delete(keyId);
    else this.#perKey.set(keyId, ofKey);
    if (this.#requests === 0) this.#onIdle?.();
  }
}
