import { Hono } from "hono";
import { cors } from "hono/cors";
import type { AsyncLLM } from "../async/async-llm.ts";
import { anthropicErrorResponse } from "./anthropic-errors.ts";
import { Authenticator, authorizationOf } from "./auth.ts";
import {
  createContext,
  type RequestContext,
  type ServerApp,
  type ServerContext,
  type ServerEnv,
} from "./context.ts";
import { refuseCrossSite } from "./cross-site.ts";
import { ApiError, errorResponse, toApiError } from "./errors.ts";
import { headerOf } from "./header.ts";
import { refuseUnknownHost } from "./host-name.ts";
import { resolveServerOptions, type ServerOptions } from "./options.ts";
import { type LogSink, standardError } from "./request-log.ts";
import { pathOf } from "./request-path.ts";
import { adminRoutes } from "./routes/admin.ts";
import { chatRoutes } from "./routes/chat.ts";
import { completionRoutes } from "./routes/completions.ts";
import { embeddingRoutes } from "./routes/embeddings.ts";
import { engineRoute } from "./routes/engine.ts";
import { healthRoutes } from "./routes/health.ts";
import { messageRoutes } from "./routes/messages.ts";
import { modelRoutes } from "./routes/models.ts";
import { pageRoutes } from "./routes/page.ts";
import { responseRoutes } from "./routes/responses.ts";
import { tokenizeRoutes } from "./routes/tokenize.ts";
import { TrackedRequest } from "./tracked-request.ts";

export interface AppOptions {
  readonly llm: AsyncLLM;
  readonly options?: ServerOptions;
  /** Takes the lines of the log. Default standard error. */
  readonly log?: LogSink;
}

/**
 * The server as a Hono app, to be mounted in another or asked with `app.request()`. It listens on nothing.
 * @throws ConfigError naming the option.
 */
export function createApp({ llm, options = {}, log = standardError() }: AppOptions): ServerApp {
  const config = resolveServerOptions({ allowedHosts: ["*"], ...options }, llm.model);
  return appOf(createContext(llm, config, log));
}

/** The paths of Anthropic's API, whose errors have a form of their own. */
const isAnthropic = (c: RequestContext) => /^\/v1\/messages(\/|$)/.test(c.req.path);

/** Mounts middleware and routes. Those after the check of the key need one, unknown paths too. */
export function appOf(context: ServerContext): ServerApp {
  const { config } = context;
  const app = new Hono<ServerEnv>({ getPath: pathOf });
  const authenticator = new Authenticator(config.apiKeys);

  app.use(async (c, next) => {
    const tracked = new TrackedRequest(context, c.req.raw, c.req.path);
    c.set("tracked", tracked);
    await next();
    if (config.enableRequestIdHeaders) c.res.headers.set("X-Request-Id", tracked.publicId);
    if (!tracked.streaming) tracked.finish(c.res.status);
  });
  app.use(async (c, next) => {
    refuseUnknownHost(headerOf(c.req.raw.headers, "host"), config.allowedHosts);
    await next();
  });
  if (config.corsOrigins.length > 0) {
    const origin = config.corsOrigins.includes("*") ? "*" : [...config.corsOrigins];
    const allow = cors({ origin, exposeHeaders: ["X-Request-Id", "Retry-After"] });
    // Without this header it is a health check, not a preflight.
    const isCheck = (c: RequestContext) =>
      c.req.method === "OPTIONS" && c.req.header("access-control-request-method") === undefined;
    app.use((c, next) => (isCheck(c) ? next() : allow(c, next)));
  }
  app.use((c, next) => {
    refuseCrossSite(c.req.raw, config.corsOrigins);
    return next();
  });
  app.onError((error, c) => {
    const told = toApiError(error);
    c.get("tracked").failed(error, told);
    return isAnthropic(c) ? anthropicErrorResponse(told) : errorResponse(told);
  });

  healthRoutes(app, context);
  pageRoutes(app);
  app.use(async (c, next) => {
    const caller = authenticator.authenticate(authorizationOf(c.req.raw.headers));
    c.set("caller", caller);
    if (caller.keyId !== "") c.get("tracked").record.keyId = caller.keyId;
    await next();
  });
  modelRoutes(app, context);
  completionRoutes(app, context);
  chatRoutes(app, context);
  responseRoutes(app, context);
  messageRoutes(app, context);
  embeddingRoutes(app, context);
  tokenizeRoutes(app, context);
  adminRoutes(app, context);
  engineRoute(app, context);
  app.notFound(() => errorResponse(new ApiError(404, "not_found", "there is no such path")));
  return app;
}
