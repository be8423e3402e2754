import type { TurnLimit } from "../../async/async-llm.ts";
import type { SubmittedRequest } from "../../base/outputs.ts";
import type { TurnLimits } from "../../formats/model-turns.ts";
import type { ChatPrompt } from "../../tokenizer/prompt-encoder.ts";
import { readRequest } from "../body/read-request.ts";
import { type RequestContext, type ServerApp, type ServerContext, servedModel } from "../context.ts";
import { unsupported } from "../errors.ts";
import type { ServerConfig } from "../options.ts";
import { ChatFormat, type Speaker } from "../replies/chat-format.ts";
import { generate, tokensFor } from "../replies/generation.ts";
import { mount } from "../router.ts";
import type { ChatRequest } from "../schemas/chat.ts";
import { tokenizeOptions } from "../schemas/request-body.ts";
import { toolSpecs, writtenTools } from "../schemas/tools.ts";
import type { Turns } from "../turns.ts";
import { textJob } from "./tokenize.ts";

/** `/v1/chat/completions` and its rendering to tokens. */
export function chatRoutes(app: ServerApp, context: ServerContext): void {
  const { llm, config } = context;
  const read = (c: RequestContext) => readRequest(c, context, "chat");

  mount(app, "/v1/chat/completions", {
    POST: async (c) => {
      const chat = await read(c);
      const { body, prompt } = chat;
      const tracked = c.get("tracked");
      if (config.logPrompts) tracked.record.prompt = prompt.messages;
      const model = servedModel(context, body.model);
      const names = {
        ...{ prompt: "messages", promptTokenIds: "messages", logprobs: "top_logprobs" },
        ...(typeof body.max_completion_tokens === "number" && { maxTokens: "max_completion_tokens" }),
      };
      const turns = await turnsOf(context, chat);
      const sampling = turns?.sampling ?? chat.sampling;
      const { promptLogprobs: top } = sampling;
      const promptScores = { tops: typeof top === "number" ? [top] : [], inChoices: false };
      return generate(
        c,
        context,
        {
          ...{ body, model, sampling, names, prompts: [shownTo(config, chat)], promptScores },
          ...(turns && { limitTurn: turns.limit }),
        },
        new ChatFormat(body, {
          names: { suffix: tracked.replyId(body.request_id), model },
          tokens: await tokensFor(context, sampling),
          speaker: speaker(chat),
          thoughts: body.include_reasoning === false ? undefined : config.reasoningField,
          openReader: turns?.open,
          // As OpenAI has it: the model could do nothing else.
          endsWithCalls: typeof chat.toolChoice !== "object",
        }),
      );
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

/** The reading of a request's turns, and what they need and are held to; undefined: all text is said. */
async function turnsOf({ turns }: ServerContext, chat: ChatRequest) {
  const { body, prompt, sampling, toolChoice } = chat;
  const { withCalls, reasoning } = turns.formats;
  checkEffort(turns, body);
  const calls = toolChoice !== "none";
  if (calls) {
    if (!withCalls) throw unsupported("tools", `tools: ${NO_CALLS}`, 400);
    if (!turns.templateKnows("tools")) throw unsupported("tools", `tools: ${NO_TOOLS}`, 400);
  }
  const budget = body.thinking_token_budget ?? undefined;
  if (budget !== undefined && !reasoning) throw unsupported("thinking_token_budget", NO_THOUGHTS, 400);
  if (!calls && !reasoning) return undefined;
  const model = await turns.bind();
  const options = {
    tools: calls ? toolSpecs(prompt.chat?.tools ?? []) : undefined,
    firstCallOnly: body.parallel_tool_calls === false,
    skipsSpecial: sampling.skipSpecialTokens ?? true,
  };
  const continued = continuedText(chat);
  const limits = limitsOf(chat);
  const { structuredOutputs: _, responseFormat: __, ...unlimited } = sampling;
  return {
    sampling: model.sampling(limits ? unlimited : sampling),
    open: ({ prompt: text = "" }: SubmittedRequest) => model.open({ prompt: text, continued }, options),
    limit: (text: string): TurnLimit => {
      const beginning = { prompt: text, continued };
      const tokens = budget === undefined ? undefined : model.thinking(beginning);
      if (budget !== undefined && !tokens) throw unsupported("thinking_token_budget", NO_THOUGHTS, 400);
      return {
        text: limits && {
          shape: model.shape(beginning, limits),
          markers: model.markers,
          param: limits.mustCall ? "tool_choice" : "tools",
        },
        thinking: tokens && { ...tokens, budget: budget! },
      };
    },
  };
}

/** What a turn must be held to: calls that are demanded or strict, and an answer in a form of its own; undefined: nothing. */
function limitsOf({ body, prompt, sampling, toolChoice }: ChatRequest): TurnLimits | undefined {
  const all = writtenTools((toolChoice !== "none" && prompt.chat?.tools) || [], toolChoice === "auto");
  const isFormatted = (sampling.structuredOutputs ?? sampling.responseFormat ?? undefined) !== undefined;
  const isStrict = all.some(({ arguments: { strict } }) => strict);
  const isNamed = typeof toolChoice === "object";
  const mustCall = isNamed || toolChoice === "required";
  if (!mustCall && !isStrict && !isFormatted) return undefined;
  return {
    tools: isNamed ? all.filter(({ name }) => name === toolChoice.name) : all,
    mustCall,
    oneCallOnly: isNamed || body.parallel_tool_calls === false,
    sampling,
  };
}

const NO_THOUGHTS = "thinking_token_budget: the tokens around the model's thoughts are not known";
const NO_CALLS =
  "the form of the model's tool calls is not known, only tool_choice \"none\" is possible; the server's --tool-call-parser names it";
const NO_TOOLS = 'the model\'s chat template does not show tools to it, only tool_choice "none" is possible';

/** An effort that no template could tell the model is refused, unless none is asked of a model that does not think. */
function checkEffort(turns: Turns, { reasoning_effort: effort }: ChatRequest["body"]): void {
  if (!effort || (effort === "none" && !turns.formats.reasoning)) return;
  if (turns.templateKnows("reasoning_effort", "enable_thinking", "thinking")) return;
  const message = "reasoning_effort: the model's chat template knows no effort of thinking";
  throw unsupported("reasoning_effort", message, 400);
}

/** The prompt as the model gets to see it. */
function shownTo(
  { excludeToolsWhenToolChoiceNone }: ServerConfig,
  { prompt, toolChoice }: ChatRequest,
): ChatPrompt {
  if (!excludeToolsWhenToolChoiceNone || toolChoice !== "none" || !prompt.chat?.tools) return prompt;
  const { tools: _, ...chat } = prompt.chat;
  return { ...prompt, chat };
}

/** The role of the reply's message, and the text that `echo` puts before it: the final message's, if its role is the same. */
function speaker(chat: ChatRequest): Speaker {
  const { body } = chat;
  const { role: finalRole } = chat.prompt.messages.at(-1)!;
  const role = (body.add_generation_prompt ?? !body.continue_final_message) ? "assistant" : finalRole;
  return { role, echoed: body.echo && finalRole === role ? finalText(chat) : "" };
}

/** The text that the model continues; undefined: it begins a message. */
function continuedText(chat: ChatRequest): string | undefined {
  return chat.body.continue_final_message ? finalText(chat) : undefined;
}

function finalText({ prompt: { messages } }: ChatRequest): string {
  const { content } = messages.at(-1)!;
  return typeof content === "string" ? content : (content ?? []).map((part) => part.text).join("\n");
}
