import { messageOf } from "../base/errors.ts";
import { type AppOptions, appOf } from "./app.ts";
import { createContext } from "./context.ts";
import { ApiError, BindError, errorResponse } from "./errors.ts";
import { checkExposure, resolveServerOptions } from "./options.ts";
import { standardError } from "./request-log.ts";

export { createApp } from "./app.ts";
export { BindError } from "./errors.ts";
export { SERVER_DEFAULTS, type ServerConfig, type ServerOptions } from "./options.ts";

export interface RunningServer extends AsyncDisposable {
  readonly url: URL;
  readonly port: number;
  /**
   * Shuts down: `/ready` and `/health` turn 503, new requests are refused, those under way get `drainSeconds` to finish,
   * the rest is told that the server is shutting down, and the port is closed. The model stays the caller's. Safe to
   * call twice.
   */
  stop(): Promise<void>;
}

/** Time that written replies get to leave. */
const FLUSH_SECONDS = 1;

/**
 * Serves a model over HTTP.
 * @throws ConfigError naming the option; BindError if the address is taken or not this machine's.
 */
export function startServer({ llm, options = {}, log = standardError() }: AppOptions): RunningServer {
  const config = resolveServerOptions(options, llm.model);
  checkExposure(config);
  const context = createContext(llm, config, log);
  const app = appOf(context);
  let server: Bun.Server<undefined>;
  try {
    server = Bun.serve({
      hostname: config.host,
      port: config.port,
      // The app answers larger bodies itself, with an error document.
      maxRequestBodySize: Number.MAX_SAFE_INTEGER,
      fetch: (request, server) => app.fetch(request, { server }),
      error: () => errorResponse(new ApiError(500, "internal_error", "internal error")),
    });
  } catch (cause) {
    context.metrics[Symbol.dispose]();
    throw new BindError(`cannot listen on ${config.host}:${config.port}: ${messageOf(cause)}`, { cause });
  }

  let stopped: Promise<void> | undefined;
  const shutDown = async () => {
    await context.admission.drain(config.drainSeconds);
    await Promise.race([server.stop(), Bun.sleep(FLUSH_SECONDS * 1000)]);
    await server.stop(true);
    context.metrics[Symbol.dispose]();
  };
  const stop = () => {
    stopped ??= shutDown();
    return stopped;
  };
  return { url: server.url, port: server.port!, stop, [Symbol.asyncDispose]: stop };
}
