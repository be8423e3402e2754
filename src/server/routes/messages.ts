import { readRequest } from "../body/read-request.ts";
import { type ServerApp, type ServerContext, servedModel } from "../context.ts";
import { converse, shownTo } from "../replies/conversation.ts";
import { MessagesFormat } from "../replies/messages-format.ts";
import { mount } from "../router.ts";
import { messagesNames } from "../schemas/anthropic.ts";
import { textJob } from "./tokenize.ts";

/** Anthropic's `/v1/messages` and its counting of tokens. */
export function messageRoutes(app: ServerApp, context: ServerContext): void {
  const { llm, config } = context;

  mount(app, "/v1/messages", {
    POST: async (c) => {
      const request = await readRequest(c, context, "messages");
      return converse(
        ...([c, context, request.chat, messagesNames(request)] as const),
        ({ names, plan }) => new MessagesFormat(names, plan?.open),
      );
    },
  });

  mount(app, "/v1/messages/count_tokens", {
    POST: async (c) => {
      const { chat } = await readRequest(c, context, "countTokens");
      servedModel(context, chat.body.model);
      const { tokenIds } = await textJob(c, context, () => llm.tokenize(shownTo(config, chat)));
      return c.json({ input_tokens: tokenIds.length });
    },
  });
}
