import type { RequestContext, ServerApp } from "./context.ts";
import { ApiError } from "./errors.ts";

export type Handler = (c: RequestContext) => Response | Promise<Response>;

/** Adds a path to the app; other methods than those given get 405. */
export function mount(
  app: ServerApp,
  path: string,
  handlers: Readonly<Partial<Record<"GET" | "POST" | "DELETE" | "OPTIONS", Handler>>>,
): void {
  const methods = Object.keys(handlers).flatMap((method) => (method === "GET" ? ["GET", "HEAD"] : [method]));
  for (const [method, handler] of Object.entries(handlers)) {
    app.on(method, path, (c) => {
      c.get("tracked").handler = path;
      return handler(c);
    });
  }
  app.all(path, () => {
    const allow = methods.join(", ");
    throw new ApiError(405, "method_not_allowed", `this path takes ${allow}`, null, { Allow: allow });
  });
}
