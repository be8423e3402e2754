import { assistantMessages } from "../../chat/assistant-turns.ts";
import { readRequest } from "../body/read-request.ts";
import type { RequestContext, ServerApp, ServerContext } from "../context.ts";
import { ApiError } from "../errors.ts";
import { converse } from "../replies/conversation.ts";
import { ResponsesFormat } from "../replies/responses-format.ts";
import type { StoredResponse } from "../response-store.ts";
import { mount } from "../router.ts";
import { responseNames, withHistory } from "../schemas/responses.ts";

/** `/v1/responses` and the responses that it has stored. */
export function responseRoutes(app: ServerApp, context: ServerContext): void {
  const { responses: store } = context;
  const find = (c: RequestContext, id: string, param: string | null): StoredResponse => {
    const found = store.get(c.get("caller").digest, id);
    if (found) return found;
    const message = `there is no response "${id.slice(0, 100)}"; the process keeps the latest that were stored`;
    throw new ApiError(404, "response_not_found", message, param);
  };

  mount(app, "/v1/responses", {
    POST: async (c) => {
      const request = await readRequest(c, context, "responses");
      const { body } = request;
      const previousId = body.previous_response_id ?? undefined;
      const previous = previousId === undefined ? undefined : find(c, previousId, "previous_response_id");
      const chat = withHistory(request, previous?.messages ?? []);
      return converse(c, context, chat, responseNames(request), ({ names, plan }) => {
        return new ResponsesFormat(body, {
          ...{ names, openReader: plan?.open },
          onEnd: (document, parts) => {
            if (body.store === false) return;
            const messages = [
              ...(previous?.messages ?? []),
              ...request.chat.prompt.messages,
              ...assistantMessages(parts),
            ];
            const size = (previous?.size ?? 0) + request.inputSize + JSON.stringify(document).length;
            store.add(c.get("caller").digest, { document, messages, size });
          },
        });
      });
    },
  });

  mount(app, "/v1/responses/:id", {
    GET: (c) => c.json(find(c, c.req.param("id")!, null).document),
    DELETE: (c) => {
      const { id } = find(c, c.req.param("id")!, null).document;
      store.delete(c.get("caller").digest, id);
      return c.json({ id, object: "response", deleted: true });
    },
  });
}
