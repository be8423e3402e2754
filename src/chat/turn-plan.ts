import type { TurnLimit } from "../async/async-llm.ts";
import { InvalidRequestError } from "../base/errors.ts";
import type { SubmittedRequest } from "../base/outputs.ts";
import type { SamplingParams } from "../base/sampling-params.ts";
import type { TurnLimits } from "../formats/model-turns.ts";
import type { TurnReader } from "../formats/turn-reader.ts";
import { type ChatPrompt, finalText } from "../tokenizer/prompt-encoder.ts";
import { type FunctionTool, type ToolChoice, toolSpecs, writtenTools } from "./tools.ts";
import type { Turns } from "./turns.ts";

/** A conversation that the model is to continue by a turn. */
export interface TurnRequest {
  /** Its tools have been checked: they are `FunctionTool`s of different names. */
  readonly prompt: ChatPrompt;
  readonly sampling: SamplingParams;
  readonly toolChoice: ToolChoice;
  /** Deliver the first call only. Default false. */
  readonly firstCallOnly?: boolean;
  /** Tokens that the model may think for. Default as many as it likes. */
  readonly thinkingBudget?: number | undefined;
}

/** The reading of the turns of a request, and what they need and are held to. */
export interface TurnPlan {
  /** The request's sampling with what the model's turns need. */
  readonly sampling: SamplingParams;
  /** Opens a reader of one completion. */
  open(request: Pick<SubmittedRequest, "prompt">): TurnReader;
  /** For `AsyncLLM.submit`. @param text the rendered conversation. */
  limit(text: string): TurnLimit;
}

/**
 * Plans the turns of a request; undefined: all text is said.
 * @throws InvalidRequestError `unsupported_parameter` naming what the model cannot do.
 */
export async function planTurns(turns: Turns, request: TurnRequest): Promise<TurnPlan | undefined> {
  const { prompt, sampling, toolChoice, firstCallOnly = false, thinkingBudget: budget } = request;
  const { withCalls, reasoning } = turns.formats;
  const calls = toolChoice !== "none";
  if (calls) {
    if (!withCalls) throw unsupported("tools", `tools: ${NO_CALLS}`);
    if (!turns.templateKnows("tools")) throw unsupported("tools", `tools: ${NO_TOOLS}`);
  }
  if (budget !== undefined && !reasoning) throw unsupported("thinking_token_budget", NO_THOUGHTS);
  if (!calls && !reasoning) return undefined;
  const model = await turns.bind();
  const options = {
    tools: calls ? toolSpecs(toolsOf(prompt)) : undefined,
    firstCallOnly,
    skipsSpecial: sampling.skipSpecialTokens ?? true,
  };
  const continued = prompt.chat?.continueFinalMessage ? finalText(prompt) : undefined;
  const limits = limitsOf(request);
  const { structuredOutputs: _, responseFormat: __, ...unlimited } = sampling;
  return {
    sampling: model.sampling(limits ? unlimited : sampling),
    open: ({ prompt: text = "" }) => model.open({ prompt: text, continued }, options),
    limit: (text) => {
      const beginning = { prompt: text, continued };
      const tokens = budget === undefined ? undefined : model.thinking(beginning);
      if (budget !== undefined && !tokens) throw unsupported("thinking_token_budget", NO_THOUGHTS);
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

/**
 * An effort that no template could tell the model is refused, unless none is asked of a model that does not think.
 * @throws InvalidRequestError `unsupported_parameter`.
 */
export function checkEffort(turns: Turns, effort: string | null | undefined): void {
  if (!effort || (effort === "none" && !turns.formats.reasoning)) return;
  if (turns.templateKnows("reasoning_effort", "enable_thinking", "thinking")) return;
  const message = "reasoning_effort: the model's chat template knows no effort of thinking";
  throw unsupported("reasoning_effort", message);
}

/** The effort of thinking, as the variables of chat templates that know one. */
export function thinkingKwargs(effort: string | null | undefined): Readonly<Record<string, unknown>> {
  if (!effort) return {};
  const thinks = effort !== "none";
  return { enable_thinking: thinks, thinking: thinks, ...(thinks && { reasoning_effort: effort }) };
}

/** What a turn must be held to: calls that are demanded or strict, and an answer in a form of its own; undefined: nothing. */
function limitsOf({ prompt, sampling, toolChoice, firstCallOnly }: TurnRequest): TurnLimits | undefined {
  const all = writtenTools(toolChoice === "none" ? [] : toolsOf(prompt), toolChoice === "auto");
  const isFormatted = (sampling.structuredOutputs ?? sampling.responseFormat ?? undefined) !== undefined;
  const isStrict = all.some(({ arguments: { strict } }) => strict);
  const isNamed = typeof toolChoice === "object";
  const mustCall = isNamed || toolChoice === "required";
  if (!mustCall && !isStrict && !isFormatted) return undefined;
  return {
    tools: isNamed ? all.filter(({ name }) => name === toolChoice.name) : all,
    mustCall,
    oneCallOnly: isNamed || firstCallOnly === true,
    sampling,
  };
}

function toolsOf({ chat }: ChatPrompt): readonly FunctionTool[] {
  return (chat?.tools ?? []) as readonly FunctionTool[];
}

const NO_THOUGHTS = "thinking_token_budget: the tokens around the model's thoughts are not known";
const NO_CALLS =
  "the form of the model's tool calls is not known, only tool_choice \"none\" is possible; the server's --tool-call-parser names it";
const NO_TOOLS = 'the model\'s chat template does not show tools to it, only tool_choice "none" is possible';

function unsupported(param: string, message: string): InvalidRequestError {
  return new InvalidRequestError(param, message, "unsupported_parameter");
}
