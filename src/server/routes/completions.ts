import type { SubmittedRequest } from "../../base/outputs.ts";
import { readRequest } from "../body/read-request.ts";
import { type RequestContext, type ServerApp, type ServerContext, servedModel } from "../context.ts";
import { CompletionFormat } from "../replies/completion-format.ts";
import { generate, tokensFor } from "../replies/generation.ts";
import { mount } from "../router.ts";
import type { CompletionsRequest } from "../schemas/completions.ts";
import { promptOf } from "../schemas/prompt.ts";
import { tokenizeOptions } from "../schemas/request-body.ts";
import { textJob } from "./tokenize.ts";

/** `/v1/completions` and its rendering to tokens. */
export function completionRoutes(app: ServerApp, context: ServerContext): void {
  const { llm, config } = context;
  const read = (c: RequestContext) => readRequest(c, context, "completions");

  mount(app, "/v1/completions", {
    POST: async (c) => {
      const request = await read(c);
      const { body, prompts, sampling, promptOnly, promptScores } = request;
      const tracked = c.get("tracked");
      if (config.logPrompts) tracked.record.prompt = prompts;
      const model = servedModel(context, body.model);
      const echo = (submitted: SubmittedRequest) => echoOf(context, submitted, request);
      const suffix = tracked.replyId(body.request_id);
      return generate(
        c,
        context,
        { body, model, sampling, promptOnly, promptScores, prompts: prompts.map(promptOf) },
        new CompletionFormat(
          request,
          { suffix, model },
          await tokensFor(context, sampling),
          body.echo ? echo : undefined,
        ),
      );
    },
  });

  mount(app, "/v1/completions/render", {
    POST: async (c) => {
      const { body, prompts } = await read(c);
      servedModel(context, body.model);
      const rendered = await textJob(c, context, () =>
        Promise.all(prompts.map((prompt) => llm.tokenize(promptOf(prompt), tokenizeOptions(body)))),
      );
      return c.json(rendered.map(({ tokenIds }) => ({ token_ids: tokenIds })));
    },
  });
}

/** The text of the prompt, as it was given where it was; token ids without a tokenizer have none. */
async function echoOf(
  { llm }: ServerContext,
  { prompt, promptTokenIds }: SubmittedRequest,
  { body, sampling }: CompletionsRequest,
): Promise<string> {
  const whole = (body.truncate_prompt_tokens ?? undefined) === undefined;
  if (whole && prompt !== undefined) return prompt;
  if (llm.config.skipTokenizerInit) return "";
  return llm.detokenize(promptTokenIds, { skipSpecialTokens: sampling.skipSpecialTokens ?? true });
}
