import type { SubmitOptions } from "../../async/async-llm.ts";
import type { ChatPrompt, Prompt } from "../../tokenizer/prompt-encoder.ts";
import { type RequestContext, type ServerApp, type ServerContext, servedModel } from "../context.ts";
import { invalidValue } from "../errors.ts";
import { readJsonBody } from "../json-body.ts";
import { admitTextRequest } from "../request-lifetime.ts";
import { mount } from "../router.ts";
import { type ConversationBody, chatPrompt } from "../schemas/chat.ts";
import { tokenIds } from "../schemas/prompt.ts";
import { parseBody } from "../schemas/request-body.ts";
import { DetokenizeBody, TokenizeBody } from "../schemas/tokenize.ts";

/** `/tokenize` and `/detokenize`. */
export function tokenizeRoutes(app: ServerApp, context: ServerContext): void {
  const { llm, config, unknownFields } = context;
  const read = (c: RequestContext) => readJsonBody(c.req.raw, config.maxRequestBytes);

  mount(app, "/tokenize", {
    POST: async (c) => {
      const body = parseBody(TokenizeBody, await read(c), unknownFields.add);
      servedModel(context, body.model);
      const result = await textJob(c, context, () => llm.tokenize(promptOf(body), tokenizeOptions(body)));
      return c.json({
        count: result.tokenIds.length,
        max_model_len: llm.maxModelLen,
        tokens: result.tokenIds,
        token_strs: body.return_token_strs ? result.tokenStrings : null,
      });
    },
  });

  mount(app, "/detokenize", {
    POST: async (c) => {
      const body = parseBody(DetokenizeBody, await read(c), unknownFields.add);
      servedModel(context, body.model);
      const tokens = tokenIds(body.tokens, "tokens");
      return c.json({ prompt: await textJob(c, context, () => llm.detokenize(tokens)) });
    },
  });
}

/** Runs a job of the tokenizer alone, within limits of its own. */
export async function textJob<T>(
  c: RequestContext,
  context: ServerContext,
  run: () => Promise<T>,
): Promise<T> {
  using lifetime = admitTextRequest(c, context);
  return await lifetime.race(run());
}

/** The options of tokenization that a body holds. */
export function tokenizeOptions(body: {
  readonly add_special_tokens?: boolean | null | undefined;
  readonly truncate_prompt_tokens?: number | null | undefined;
}): SubmitOptions {
  const { add_special_tokens: special, truncate_prompt_tokens: truncate } = body;
  return {
    ...(typeof truncate === "number" && { truncatePromptTokens: truncate }),
    ...(typeof special === "boolean" && { addSpecialTokens: special }),
  };
}

function promptOf(
  body: ConversationBody & { readonly prompt?: string | null | undefined },
): Prompt | ChatPrompt {
  const isChat = body.messages !== undefined && body.messages !== null;
  if (typeof body.prompt === "string" && !isChat) return body.prompt;
  if (isChat && typeof body.prompt !== "string") return chatPrompt(body);
  throw invalidValue("prompt", "give either prompt or messages");
}
