import type { SubmittedRequest } from "../../base/outputs.ts";
import type { Prompt } from "../../tokenizer/prompt-encoder.ts";
import { readRequest } from "../body/read-request.ts";
import { type Echo, scored } from "../chunks.ts";
import { CompletionFormat } from "../completion-format.ts";
import { type RequestContext, type ServerApp, type ServerContext, servedModel } from "../context.ts";
import { generate } from "../generation.ts";
import { mount } from "../router.ts";
import type { PromptInput } from "../schemas/prompt.ts";
import { tokenizeOptions } from "../schemas/request-body.ts";
import { textJob } from "./tokenize.ts";

/** `/v1/completions` and its rendering to tokens. */
export function completionRoutes(app: ServerApp, context: ServerContext): void {
  const { llm, config } = context;
  const read = (c: RequestContext) => readRequest(c, context, "completions");

  mount(app, "/v1/completions", {
    POST: async (c) => {
      const { body, prompts, sampling, promptOnly } = await read(c);
      const tracked = c.get("tracked");
      if (config.logPrompts) tracked.record.prompt = prompts;
      const model = servedModel(context, body.model);
      const echo = body.echo && ((request: SubmittedRequest) => echoOf(context, request, body));
      return generate(
        c,
        context,
        { body, model, sampling, promptOnly, prompts: prompts.map(promptOf), ...(echo && { echo }) },
        new CompletionFormat(body, { suffix: tracked.replyId(body.request_id), model }),
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

function promptOf(prompt: PromptInput): Prompt {
  return typeof prompt === "string" ? { prompt } : { promptTokenIds: prompt };
}

/** The prompt as the beginning of the reply. */
async function echoOf(
  { llm }: ServerContext,
  request: SubmittedRequest,
  body: { readonly truncate_prompt_tokens?: number | null | undefined },
): Promise<Echo> {
  const { prompt, promptTokenIds, promptLogprobs } = request;
  const whole = (body.truncate_prompt_tokens ?? undefined) === undefined;
  const text = whole && prompt !== undefined ? prompt : await llm.detokenize(promptTokenIds);
  if (!promptLogprobs) return { text, scores: [] };
  const [first, ...rest] = promptTokenIds;
  const opening = { id: first!, text: await llm.detokenize([first!]), position: null };
  return { text, scores: [opening, ...rest.map((id, i) => scored(id, promptLogprobs[i + 1]!))] };
}
