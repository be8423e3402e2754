import { type AppOptions, appOf } from "./app.ts";
import { createContext } from "./context.ts";
import { Listener } from "./listener.ts";
import { checkExposure, resolveServerOptions } from "./options.ts";
import { standardError } from "./request-log.ts";

export { createApp } from "./app.ts";
export { BindError } from "./errors.ts";
export { SERVER_DEFAULTS, type ServerConfig, type ServerOptions } from "./options.ts";

/** A server that listens. Disposing of it stops it. */
export interface RunningServer extends AsyncDisposable {
  readonly url: URL;
  readonly port: number;
  /**
   * Shuts down: `/ready` and `/health` turn 503, and after `shutdownDelaySeconds`, in which routers notice, new requests
   * are refused. Those under way get `drainSeconds` to finish, the rest is told that the server is shutting down, and the
   * port is closed. The model stays the caller's. Safe to call twice.
   */
  stop(): Promise<void>;
}

/** The model that is served, how, and where the log goes. */
export interface StartOptions extends AppOptions {
  /** Listens already, since before the model was loaded; `host` and `port` are not looked at then. */
  readonly listener?: Listener;
}

/** Time that written replies get to leave. */
const FLUSH_SECONDS = 1;

/**
 * Serves a model over HTTP.
 * @throws ConfigError naming the option; BindError if the address is taken or not this machine's.
 */
export function startServer({
  llm,
  options = {},
  log = standardError(),
  listener: opened,
}: StartOptions): RunningServer {
  const config = resolveServerOptions(options, llm.model);
  checkExposure(config);
  const listener = opened ?? new Listener(config.host, config.port);
  const context = createContext(llm, config, log);
  const app = appOf(context);
  listener.handle((request, server) => app.fetch(request, { server }));

  let stopped: Promise<void> | undefined;
  const shutDown = async () => {
    context.admission.announceEnd();
    await Bun.sleep(config.shutdownDelaySeconds * 1000);
    await context.admission.drain(config.drainSeconds);
    for (const watch of context.watches) watch[Symbol.dispose]();
    await listener.stop(FLUSH_SECONDS);
    context.metrics[Symbol.dispose]();
    await context.bodies[Symbol.asyncDispose]();
  };
  const stop = () => {
    stopped ??= shutDown();
    return stopped;
  };
  return { url: listener.url, port: listener.port, stop, [Symbol.asyncDispose]: stop };
}
