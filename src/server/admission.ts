import { ApiError, invalidValue, overloaded } from "./errors.ts";

export interface AdmissionLimits {
  /** Completions under way at once, running or queued. Jobs for the tokenizer alone are as many again. */
  readonly maxCompletions: number;
  /** Requests of either kind under way at once by one key; 0: no limit. */
  readonly maxConcurrentPerKey: number;
}

/**
 * The server's gate: counts requests under way, and refuses more than the limits allow. Those that only need the tokenizer
 * are counted apart from those that generate, so that neither kind keeps the other out.
 */
export class Admission {
  readonly #cutoff = new AbortController();
  readonly #generation: Gate;
  readonly #text: Gate;
  #ending = false;
  #closed = false;
  #onIdle: (() => void) | undefined;

  constructor(limits: AdmissionLimits) {
    this.#generation = new Gate(limits);
    this.#text = new Gate(limits);
  }

  /** Requests under way, their replies included. */
  get numRequests(): number {
    return this.#generation.requests + this.#text.requests;
  }

  /** True if requests will soon be refused, or are already: routers should send no more. */
  get ending(): boolean {
    return this.#ending;
  }

  /** Aborted when the requests under way have run out of time to finish. */
  get cutoff(): AbortSignal {
    return this.#cutoff.signal;
  }

  /**
   * Counts a request in that generates so many completions, until the returned function is called.
   * @throws ApiError 503 `shutting_down` or `overloaded`, 429 `too_many_requests`, 400 if it could never be admitted.
   */
  admit(keyId: string, completions: number): () => void {
    return this.#enter(this.#generation, keyId, completions);
  }

  /** Counts a request in that only needs the tokenizer. @throws as `admit`. */
  admitText(keyId: string): () => void {
    return this.#enter(this.#text, keyId, 1);
  }

  /** Says that requests will soon be refused. */
  announceEnd(): void {
    this.#ending = true;
  }

  /** Takes no more requests on, and waits until those under way are done or, after `seconds`, cuts them off. */
  async drain(seconds: number): Promise<void> {
    this.#ending = true;
    this.#closed = true;
    if (await this.#idle(seconds)) return;
    this.#cutoff.abort(overloaded("shutting_down", "the server is shutting down"));
    await this.#idle(1);
  }

  #enter(gate: Gate, keyId: string, weight: number): () => void {
    if (this.#closed) throw overloaded("shutting_down", "the server is shutting down");
    gate.enter(keyId, weight);
    let left = false;
    return () => {
      if (left) return;
      left = true;
      gate.leave(keyId, weight);
      if (this.numRequests === 0) this.#onIdle?.();
    };
  }

  /** Waits up to `seconds` for the last request; true if none is left. */
  async #idle(seconds: number): Promise<boolean> {
    if (this.numRequests === 0) return true;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#onIdle = resolve;
    const timer = setTimeout(resolve, seconds * 1000);
    await promise;
    clearTimeout(timer);
    return this.numRequests === 0;
  }
}

/** Counts the requests of one kind. */
class Gate {
  requests = 0;
  #completions = 0;
  readonly #perKey = new Map<string, number>();

  constructor(private readonly limits: AdmissionLimits) {}

  /** @throws ApiError */
  enter(keyId: string, completions: number): void {
    const { maxCompletions, maxConcurrentPerKey } = this.limits;
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
  }

  leave(keyId: string, completions: number): void {
    this.#add(keyId, -completions, -1);
  }

  #add(keyId: string, completions: number, requests: 1 | -1): void {
    this.requests += requests;
    this.#completions += completions;
    const ofKey = (this.#perKey.get(keyId) ?? 0) + requests;
    if (ofKey === 0) this.#perKey.delete(keyId);
    else this.#perKey.set(keyId, ofKey);
  }
}
