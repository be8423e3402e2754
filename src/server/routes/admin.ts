import { version } from "../../../package.json";
import type { ServerApp, ServerContext } from "../context.ts";
import { ApiError } from "../errors.ts";
import { openApiDocument } from "../openapi.ts";
import { mount } from "../router.ts";

/**
 * Routes for operators and their tools. vLLM leaves `/metrics` open; here it needs the key like all else, as it tells
 * models and traffic, and Prometheus can send one (`authorization` in its scrape configuration).
 */
export function adminRoutes(app: ServerApp, { llm, metrics, admission }: ServerContext): void {
  const document = openApiDocument(version);
  mount(app, "/version", { GET: (c) => c.json({ version }) });
  mount(app, "/load", { GET: (c) => c.json({ server_load: admission.numRequests }) });
  mount(app, "/openapi.json", { GET: (c) => c.json(document) });
  mount(app, "/metrics", {
    GET: async (c) => c.body(await metrics.text(), 200, { "Content-Type": metrics.contentType }),
  });
  mount(app, "/reset_prefix_cache", {
    POST: async (c) => {
      if (await llm.resetPrefixCache()) return c.body(null, 200);
      throw new ApiError(409, "busy", "running requests hold cached prefixes");
    },
  });
}
