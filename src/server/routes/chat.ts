import { readRequest } from "../body/read-request.ts";
import { type RequestContext, type ServerApp, type ServerContext, servedModel } from "../context.ts";
import { ChatFormat, type Speaker } from "../replies/chat-format.ts";
import { generate, tokensFor } from "../replies/generation.ts";
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
      const { body, prompt, sampling } = chat;
      const tracked = c.get("tracked");
      if (config.logPrompts) tracked.record.prompt = prompt.messages;
      const model = servedModel(context, body.model);
      const names = {
        ...{ prompt: "messages", promptTokenIds: "messages", logprobs: "top_logprobs" },
        ...(typeof body.max_completion_tokens === "number" && { maxTokens: "max_completion_tokens" }),
      };
      const { promptLogprobs: top } = sampling;
      const promptScores = { tops: typeof top === "number" ? [top] : [], inChoices: false };
      return generate(
        c,
        context,
        { body, model, sampling, names, prompts: [prompt], promptScores },
        new ChatFormat(
          body,
          { suffix: tracked.replyId(body.request_id), model },
          await tokensFor(context, sampling),
          speaker(chat),
        ),
      );
    },
  });

  mount(app, "/v1/chat/completions/render", {
    POST: async (c) => {
      const { body, prompt } = await read(c);
      servedModel(context, body.model);
      const { tokenIds } = await textJob(c, context, () => llm.tokenize(prompt, tokenizeOptions(body)));
      return c.json({ token_ids: tokenIds });
    },
  });
}

/** The role of the reply's message, and the text that `echo` puts before it: the final message's, if its role is the same. */
function speaker({ body, prompt: { messages } }: ChatRequest): Speaker {
  const final = messages.at(-1)!;
  const opened = body.add_generation_prompt ?? !body.continue_final_message;
  const role = opened ? "assistant" : final.role;
  if (!body.echo || final.role !== role) return { role, echoed: "" };
  const { content } = final;
  const text = typeof content === "string" ? content : (content ?? []).map((part) => part.text).join("\n");
  return { role, echoed: text };
}
