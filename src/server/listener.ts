import { messageOf } from "../base/errors.ts";
import { ApiError, BindError, errorResponse, overloaded } from "./errors.ts";
import { pathOf } from "./request-path.ts";

/** Answers a request that came in on a listener. */
export type RequestHandler = (
  request: Request,
  server: Bun.Server<undefined>,
) => Response | Promise<Response>;

/** Seconds after which a client that was told that the model loads may ask again. */
const RETRY_SECONDS = 5;

/**
 * An address that is listened on from before the model is loaded until the server has stopped: no connection is refused
 * in between. Until it has a handler, `/live` gets 200 and all else 503 `loading`.
 */
export class Listener {
  readonly #server: Bun.Server<undefined>;
  #handler: RequestHandler = loading;

  /** @throws BindError if the address is taken or not this machine's. */
  constructor(host: string, port: number) {
    try {
      this.#server = Bun.serve({
        // Outside development Bun would share the port with another process that does so, too.
        ...{ hostname: host, port, development: false, reusePort: false },
        // The app answers larger bodies itself, with an error document.
        maxRequestBodySize: Number.MAX_SAFE_INTEGER,
        fetch: (request, server) => this.#handler(request, server),
        error: () => errorResponse(new ApiError(500, "internal_error", "internal error")),
      });
    } catch (cause) {
      throw new BindError(`cannot listen on ${host}:${port}: ${messageOf(cause)}`, { cause });
    }
  }

  get url(): URL {
    return this.#server.url;
  }

  get port(): number {
    return this.#server.port!;
  }

  /** From here on requests, those of open connections too, go to `handler`. */
  handle(handler: RequestHandler): void {
    this.#handler = handler;
  }

  /** Refuses new connections, gives written replies `seconds` to leave, and closes what is left. Safe to call twice. */
  async stop(seconds: number): Promise<void> {
    await Promise.race([this.#server.stop(), Bun.sleep(seconds * 1000)]);
    await this.#server.stop(true);
  }
}

function loading(request: Request): Response {
  if (pathOf(request) === "/live") return new Response(null);
  return errorResponse(overloaded("loading", "the model is being loaded", RETRY_SECONDS));
}
