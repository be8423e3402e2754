import { Store } from "./store.ts";

/** The server refused, or could not be reached. */
export class ServerError extends Error {
  constructor(
    message: string,
    /** HTTP's; 0: there was no reply. */
    readonly status: number,
    /** The parameter at fault, as the request spells it. */
    readonly param: string | null = null,
  ) {
    super(message);
  }
}

const KEY = "octavo.key";

/**
 * The way to the server: all requests go through it, with the API key if there is one. The key is kept by this tab, or by the
 * browser if its user wants that. Nothing but this page's own script can read it, and the page runs no other.
 */
export class ServerAccess {
  /** The server wants a key, and has refused the one that it got, if any. */
  readonly isLocked = new Store(false);
  #key: string | null = sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY);

  get hasKey(): boolean {
    return this.#key !== null;
  }

  /**
   * Uses a key from here on, if the server takes it.
   * @param remember beyond this tab. @throws ServerError
   */
  async unlock(key: string, remember: boolean): Promise<void> {
    this.forget();
    this.#key = key;
    await this.fetch("v1/models");
    (remember ? localStorage : sessionStorage).setItem(KEY, key);
    this.isLocked.value = false;
  }

  forget(): void {
    this.#key = null;
    sessionStorage.removeItem(KEY);
    localStorage.removeItem(KEY);
  }

  /**
   * A reply that is no error. Paths are relative to the page, so that a proxy may serve all of it below a path.
   * @throws ServerError; DOMException "AbortError".
   */
  async fetch(path: string, init: RequestInit = {}): Promise<Response> {
    const headers = new Headers(init.headers);
    if (this.#key !== null) headers.set("Authorization", `Bearer ${this.#key}`);
    const reply = await fetch(path, { ...init, headers, cache: "no-store", credentials: "omit" }).catch(
      (error: unknown) => {
        if (error instanceof DOMException && error.name === "AbortError") throw error;
        throw new ServerError("The server cannot be reached", 0);
      },
    );
    if (reply.ok) return reply;
    if (reply.status === 401) this.isLocked.value = true;
    throw await refusal(reply);
  }
}

async function refusal(reply: Response): Promise<ServerError> {
  const body: unknown = await reply.json().catch(() => undefined);
  const error = (body as { error?: { message?: unknown; param?: unknown } } | undefined)?.error;
  const message = typeof error?.message === "string" ? error.message : `The server replied ${reply.status}`;
  return new ServerError(message, reply.status, typeof error?.param === "string" ? error.param : null);
}
