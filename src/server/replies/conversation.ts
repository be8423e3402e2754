import { checkEffort, planTurns, type TurnPlan, type TurnRequest } from "../../chat/turn-plan.ts";
import type { ChatPrompt } from "../../tokenizer/prompt-encoder.ts";
import { type RequestContext, type ServerContext, servedModel } from "../context.ts";
import type { ServerConfig } from "../options.ts";
import type { ChatRequest } from "../schemas/chat.ts";
import { type GenerationRequest, generate, renamed } from "./generation.ts";
import type { ReplyFormat, ReplyNames } from "./reply-format.ts";

/** The start of a conversation's reply, as formats need it. */
export interface ConversationReply {
  readonly names: ReplyNames;
  readonly plan: TurnPlan | undefined;
}

/**
 * Continues a conversation and replies in the endpoint's format.
 * @param names as of `GenerationRequest`.
 * @throws whatever stops it before anything of the reply is sent.
 */
export async function converse<Prompt>(
  c: RequestContext,
  context: ServerContext,
  chat: ChatRequest,
  names: GenerationRequest["names"],
  formatOf: (reply: ConversationReply) => ReplyFormat<Prompt> | Promise<ReplyFormat<Prompt>>,
): Promise<Response> {
  const { body, prompt, toolChoice } = chat;
  const { config, turns } = context;
  const tracked = c.get("tracked");
  if (config.logPrompts) tracked.record.prompt = prompt.messages;
  const model = servedModel(context, body.model);
  const turn: TurnRequest = {
    ...{ prompt, sampling: chat.sampling, toolChoice },
    firstCallOnly: body.parallel_tool_calls === false,
    thinkingBudget: body.thinking_token_budget ?? undefined,
  };
  let plan: TurnPlan | undefined;
  try {
    checkEffort(turns, body.reasoning_effort);
    plan = await planTurns(turns, turn);
  } catch (error) {
    throw renamed(error, names);
  }
  const sampling = plan?.sampling ?? chat.sampling;
  const { promptLogprobs: top } = sampling;
  const request: GenerationRequest = {
    ...{ body, model, sampling, prompts: [shownTo(config, chat)] },
    promptScores: { tops: typeof top === "number" ? [top] : [], inChoices: false },
    ...(names && { names }),
    limitTurn: plan?.limit ?? (() => ({})),
  };
  const reply = { names: { suffix: tracked.replyId(body.request_id), model }, plan };
  return generate(c, context, request, await formatOf(reply));
}

/** The prompt as the model gets to see it. */
export function shownTo(
  { excludeToolsWhenToolChoiceNone }: ServerConfig,
  { prompt, toolChoice }: ChatRequest,
): ChatPrompt {
  if (!excludeToolsWhenToolChoiceNone || toolChoice !== "none" || !prompt.chat?.tools) return prompt;
  const { tools: _, ...chat } = prompt.chat;
  return { ...prompt, chat };
}
