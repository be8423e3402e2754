import { readRequest } from "../body/read-request.ts";
import { type RequestContext, type ServerApp, type ServerContext, servedModel } from "../context.ts";
import { admitTextRequest } from "../request-lifetime.ts";
import { mount } from "../router.ts";
import { tokenizeOptions } from "../schemas/request-body.ts";

/** `/tokenize` and `/detokenize`. */
export function tokenizeRoutes(app: ServerApp, context: ServerContext): void {
  const { llm } = context;

  mount(app, "/tokenize", {
    POST: async (c) => {
      const { body, prompt } = await readRequest(c, context, "tokenize");
      servedModel(context, body.model);
      const result = await textJob(c, context, () => llm.tokenize(prompt, tokenizeOptions(body)));
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
      const { model, tokens, skipSpecialTokens } = await readRequest(c, context, "detokenize");
      servedModel(context, model);
      return c.json({
        prompt: await textJob(c, context, () => llm.detokenize(tokens, { skipSpecialTokens })),
      });
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
