import { messageOf } from "../base/errors.ts";
import { errorResponse, overloaded } from "../server/errors.ts";
import { BindError } from "../server/serve.ts";

const RETRY_SECONDS = 5;

export interface HeldAddress {
  readonly port: number;
  /** Frees the address. */
  release(): Promise<void>;
}

/**
 * Takes the server's address while the model loads, so that a port in use is known at once: `/live` gets 200, all else
 * 503 `loading`.
 * @throws BindError
 */
export function holdAddress(host: string, port: number): HeldAddress {
  try {
    const server = Bun.serve({
      ...{ hostname: host, port, development: false },
      // A hostile Host header makes the URL unparsable.
      fetch: ({ url }) =>
        URL.parse(url)?.pathname === "/live"
          ? new Response(null)
          : errorResponse(overloaded("loading", "the model is being loaded", RETRY_SECONDS)),
    });
    return { port: server.port!, release: () => server.stop(true) };
  } catch (cause) {
    throw new BindError(`cannot listen on ${host}:${port}: ${messageOf(cause)}`, { cause });
  }
}
