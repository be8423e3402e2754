import { finalText } from "../../tokenizer/prompt-encoder.ts";
import { readRequest } from "../body/read-request.ts";
import { type RequestContext, type ServerApp, type ServerContext, servedModel } from "../context.ts";
import { ChatFormat, type Speaker } from "../replies/chat-format.ts";
import { converse, shownTo } from "../replies/conversation.ts";
import { tokensFor } from "../replies/generation.ts";
import { mount } from "../router.ts";
import type { ChatRequest } from "../schemas/chat.ts";
import { tokenizeOptions } from "../schemas/request-body.ts";
import { textJob } from "./tokenize.ts";

/** `/v1/chat/completions` and its rendering to tokens. */
export function chatRoutes(app: ServerApp, context: ServerContext): void {
  const { llm, config } = context;
  const read = (c: RequestContext) => readRequest(c, context, "chat");

  mount(app, "/v1/chat/completions", {
    POST: async (c) => {
      const chat = await read(c);
      const { body } = chat;
      const names = {
        ...{ prompt: "messages", promptTokenIds: "messages", logprobs: "top_logprobs" },
        ...(typeof body.max_completion_tokens === "number" && { maxTokens: "max_completion_tokens" }),
      };
      return converse(c, context, chat, names, async ({ names, plan }) => {
        const tokens = await tokensFor(context, chat.sampling);
        return new ChatFormat(body, {
          ...{ names, tokens, speaker: speaker(chat), openReader: plan?.open },
          thoughts: body.include_reasoning === false ? undefined : config.reasoningField,
          // As OpenAI has it: the model could do nothing else.
          endsWithCalls: typeof chat.toolChoice !== "object",
        });
      });
    },
  });

  mount(app, "/v1/chat/completions/render", {
    POST: async (c) => {
      const chat = await read(c);
      const { body } = chat;
      servedModel(context, body.model);
      const prompt = shownTo(config, chat);
      const { tokenIds } = await textJob(c, context, () => llm.tokenize(prompt, tokenizeOptions(body)));
      return c.json({ token_ids: tokenIds });
    },
  });
}

/** The role of the reply's message, and the text that `echo` puts before it: the final message's, if its role is the same. */
function speaker({ body, prompt }: ChatRequest): Speaker {
  const { role: finalRole } = prompt.messages.at(-1)!;
  const role = (body.add_generation_prompt ?? !body.continue_final_message) ? "assistant" : finalRole;
  return { role, echoed: body.echo && finalRole === role ? finalText(prompt) : "" };
}
