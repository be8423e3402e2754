import { createHash, timingSafeEqual } from "node:crypto";
import { ApiError } from "./errors.ts";
import { headerOf } from "./header.ts";

/** The sender of a request, known by its API key. */
export interface Caller {
  /** The first 12 hexadecimal digits of the key's SHA-256; empty without keys. Safe to log. */
  readonly keyId: string;
  /** The key's SHA-256 in hexadecimal, which keeps the caller's cached prefixes apart; undefined without keys. */
  readonly digest: string | undefined;
}

const ANYBODY: Caller = { keyId: "", digest: undefined };
const BEARER = /^Bearer +(\S+) *$/i;

/** The `Authorization` header, or Anthropic's `x-api-key` as one. */
export function authorizationOf(headers: Headers): string | undefined {
  const key = headerOf(headers, "x-api-key");
  return headerOf(headers, "authorization") ?? (key === undefined ? undefined : `Bearer ${key}`);
}

/** Checks `Authorization: Bearer` headers. Its time depends on neither which key matches nor how much of it does. */
export class Authenticator {
  readonly #digests: readonly Buffer[];

  constructor(apiKeys: readonly string[]) {
    this.#digests = apiKeys.map(sha256);
  }

  /** True for a request that may be served: it brings a key of the server's, or none is needed. */
  knows(authorization: string | undefined): boolean {
    try {
      this.authenticate(authorization);
      return true;
    } catch {
      return false;
    }
  }

  /**
   * The caller that sent this `Authorization` header.
   * @throws ApiError 401 `invalid_api_key`.
   */
  authenticate(authorization: string | undefined): Caller {
    if (this.#digests.length === 0) return ANYBODY;
    const given = sha256(authorization?.match(BEARER)?.[1] ?? "");
    let known = false;
    for (const digest of this.#digests) known = timingSafeEqual(digest, given) || known;
    if (!known)
      throw new ApiError(401, "invalid_api_key", "a valid API key is needed", null, {
        "WWW-Authenticate": "Bearer",
      });
    const digest = given.toString("hex");
    return { keyId: digest.slice(0, 12), digest };
  }
}

/** The salt of a request's cached prefixes: its own, its caller's, or both; at most 64 characters unless its own. */
export function cacheSalt(caller: Caller, own: string | undefined, isolate: boolean): string | undefined {
  if (!isolate || caller.digest === undefined) return own;
  return sha256(`${caller.digest}${own === undefined ? "" : `:${own}`}`).toString("hex");
}

function sha256(text: string): Buffer {
  return createHash("sha256").update(text).digest();
}
