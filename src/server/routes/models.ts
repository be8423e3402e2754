import { type ServerApp, type ServerContext, servedModel } from "../context.ts";
import { mount } from "../router.ts";

/** `/v1/models` and its cards. */
export function modelRoutes(app: ServerApp, context: ServerContext): void {
  const { llm, config, startedAt } = context;
  const card = (id: string) => ({
    ...{ id, object: "model", created: startedAt, owned_by: "octavo" },
    ...{ root: llm.model, parent: null, max_model_len: llm.maxModelLen },
  });
  mount(app, "/v1/models", {
    GET: (c) => c.json({ object: "list", data: config.servedModelNames.map(card) }),
  });
  // Names may contain slashes.
  mount(app, "/v1/models/:model{.+}", {
    GET: (c) => c.json(card(servedModel(context, c.req.param("model")))),
  });
}
