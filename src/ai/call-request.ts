import type {
  LanguageModelV4CallOptions,
  LanguageModelV4FunctionTool,
  LanguageModelV4ToolChoice,
  SharedV4Warning,
} from "@ai-sdk/provider";
import { InvalidRequestError } from "../base/errors.ts";
import type { SamplingParams } from "../base/sampling-params.ts";
import type { FunctionTool, ToolChoice } from "../chat/tools.ts";
import { type TurnRequest, thinkingKwargs } from "../chat/turn-plan.ts";
import { promptMessages } from "./prompt-messages.ts";

/** `providerOptions.octavo` of a call. */
export interface OctavoCallOptions
  extends Omit<SamplingParams, "n" | "outputKind" | "logprobs" | "promptLogprobs"> {
  /** Variables of the chat template, such as `enable_thinking`. */
  readonly chatTemplateKwargs?: Readonly<Record<string, unknown>>;
  /** false: a reply has the first call only. Default true. */
  readonly parallelToolCalls?: boolean;
  /** Tokens that the model may think for. Default as many as it likes. */
  readonly thinkingTokenBudget?: number;
  /** Requests share cached prefixes only with requests of the same salt. */
  readonly cacheSalt?: string;
}

/** Sampling parameters for whose results a reply has no place. */
const REFUSED = ["n", "outputKind", "logprobs", "promptLogprobs"];

/** A call of the AI SDK in Octavo's terms. */
export interface CallRequest {
  readonly turn: TurnRequest;
  /** The effort of thinking, for `checkEffort`. */
  readonly effort: string | undefined;
  readonly warnings: SharedV4Warning[];
}

/** @throws InvalidRequestError naming what a model of text cannot take. */
export function callRequest(options: LanguageModelV4CallOptions): CallRequest {
  const given = (options.providerOptions?.["octavo"] ?? {}) as OctavoCallOptions;
  const { chatTemplateKwargs, parallelToolCalls, thinkingTokenBudget, cacheSalt, ...own } = given;
  const refused = REFUSED.find((name) => Object.hasOwn(own, name));
  if (refused) throw new InvalidRequestError(refused, `${refused} cannot be asked for by the AI SDK`);
  const warnings: SharedV4Warning[] = [];
  const tools = functionTools(options, warnings);
  const effort = effortOf(options);
  return {
    effort,
    warnings,
    turn: {
      prompt: {
        messages: promptMessages(options.prompt),
        ...(cacheSalt !== undefined && { cacheSalt }),
        chat: {
          chatTemplateKwargs: { ...thinkingKwargs(effort), ...chatTemplateKwargs },
          ...(tools.length > 0 && { tools }),
        },
      },
      sampling: { ...samplingOf(options), ...own },
      toolChoice: tools.length === 0 ? "none" : choiceOf(options.toolChoice, tools),
      firstCallOnly: parallelToolCalls === false,
      thinkingBudget: thinkingTokenBudget,
    },
  };
}

/** The parameters that the AI SDK names, those that were given. */
function samplingOf(options: LanguageModelV4CallOptions): SamplingParams {
  const { temperature, topP, topK, presencePenalty, frequencyPenalty, seed, responseFormat } = options;
  const given = { temperature, topP, topK, presencePenalty, frequencyPenalty, seed };
  const isJson = responseFormat?.type === "json";
  return {
    ...Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined)),
    // A reply may fill the context.
    maxTokens: options.maxOutputTokens ?? null,
    ...(options.stopSequences && options.stopSequences.length > 0 && { stop: options.stopSequences }),
    ...(isJson && {
      structuredOutputs: responseFormat.schema ? { json: responseFormat.schema } : { jsonObject: true },
    }),
  };
}

/** Efforts that chat templates know. */
function effortOf({ reasoning }: LanguageModelV4CallOptions): string | undefined {
  if (reasoning === undefined || reasoning === "provider-default") return undefined;
  return reasoning === "max" ? "xhigh" : reasoning;
}

function functionTools(
  { tools = [] }: LanguageModelV4CallOptions,
  warnings: SharedV4Warning[],
): readonly FunctionTool[] {
  const isFunction = (tool: (typeof tools)[number]): tool is LanguageModelV4FunctionTool => {
    if (tool.type === "function") return true;
    warnings.push({ type: "unsupported", feature: `the provider's tool ${tool.id}` });
    return false;
  };
  return tools.filter(isFunction).map(({ name, description, inputSchema, strict }) => ({
    type: "function",
    function: {
      ...{ name, parameters: inputSchema as Readonly<Record<string, unknown>> },
      ...(description !== undefined && { description }),
      ...(strict === true && { strict }),
    },
  }));
}

function choiceOf(choice: LanguageModelV4ToolChoice | undefined, tools: readonly FunctionTool[]): ToolChoice {
  if (choice === undefined) return "auto";
  if (choice.type !== "tool") return choice.type;
  const { toolName: name } = choice;
  if (tools.some((tool) => tool.function.name === name)) return { name };
  throw new InvalidRequestError("toolChoice", "toolChoice must be the name of one of the tools");
}
