import { assistantMessages } from "../../chat/assistant-turns.ts";
import { readRequest } from "../body/read-request.ts";
import type { RequestContext, ServerApp, ServerContext } from "../context.ts";
import { ApiError } from "../errors.ts";
import { converse } from "../replies/conversation.ts";
import { ResponsesFormat } from "../replies/responses-format.ts";
import type { StoredResponse } from "../response-store.ts";
import { mount } from "../router.ts";
import type { FindItem } from "../schemas/response-input.ts";
import { responseNames, withHistory, withItems } from "../schemas/responses.ts";

/** The id of an item, as `ResponsesFormat` makes it of its response's. */
const ITEM_ID = /^(?:rs|msg|fc)_(.+)_(\d+)$/;

/** `/v1/responses` and the responses that it has stored. */
export function responseRoutes(app: ServerApp, context: ServerContext): void {
  const { responses: store } = context;
  const find = (c: RequestContext, id: string, param: string | null): StoredResponse => {
    const found = store.get(c.get("caller").digest, id);
    if (found) return found;
    const message = `there is no response "${id.slice(0, 100)}"; the process keeps the latest that were stored`;
    throw new ApiError(404, "response_not_found", message, param);
  };

  /** Finds items of stored responses, as many as a body could have brought. */
  const findItem = (c: RequestContext): FindItem => {
    let left = context.config.maxRequestBytes;
    return (id, where) => {
      const [, suffix, index] = ITEM_ID.exec(id) ?? [];
      const response = suffix === undefined ? undefined : store.get(c.get("caller").digest, `resp_${suffix}`);
      const item = (response?.document["output"] as { readonly id: string }[] | undefined)?.[Number(index)];
      if (item?.id !== id) {
        const message = `${where}: there is no item "${id.slice(0, 100)}"; the process keeps those of the latest responses that were stored`;
        throw new ApiError(404, "item_not_found", message, where);
      }
      left -= JSON.stringify(item).length;
      if (left >= 0) return item;
      throw new ApiError(413, "request_too_large", "the items that the input refers to are too long", where);
    };
  };

  mount(app, "/v1/responses", {
    POST: async (c) => {
      const request = withItems(await readRequest(c, context, "responses"), findItem(c));
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
