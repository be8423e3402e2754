import { ConfigError } from "../base/errors.ts";
import { DEEPSEEK_V3, DEEPSEEK_V31 } from "./deepseek.ts";
import type { ReasoningFormat, ToolFormat } from "./format.ts";
import { GEMMA4, GEMMA4_STOPS, GEMMA4_THINK } from "./gemma4.ts";
import { HARMONY, HARMONY_STOPS, HARMONY_WITHOUT_CALLS, harmonyBegun } from "./harmony.ts";
import { HERMES } from "./hermes.ts";
import { LLAMA3_JSON } from "./llama3-json.ts";
import { MISTRAL } from "./mistral.ts";
import { PYTHONIC } from "./pythonic.ts";
import { QWEN3_CODER } from "./qwen3-coder.ts";
import { DEEPSEEK_R1, MISTRAL_THINK, PLAIN, THINK, thinkingBefore, thinkingBegun } from "./thinking.ts";

const HARMONY_NAME = "harmony";

/** Forms of tool calls by the names that vLLM has for them, and its other names. */
const TOOL_FORMATS: Readonly<Record<string, ToolFormat>> = {
  hermes: HERMES,
  qwen3_coder: QWEN3_CODER,
  qwen3_xml: QWEN3_CODER,
  llama3_json: LLAMA3_JSON,
  llama4_json: LLAMA3_JSON,
  pythonic: PYTHONIC,
  llama4_pythonic: PYTHONIC,
  mistral: MISTRAL,
  deepseek_v3: DEEPSEEK_V3,
  deepseek_v31: DEEPSEEK_V31,
  gemma4: GEMMA4,
  [HARMONY_NAME]: HARMONY,
  openai: HARMONY,
};

const REASONING_FORMATS: Readonly<Record<string, ReasoningFormat>> = {
  qwen3: THINK,
  deepseek_r1: DEEPSEEK_R1,
  deepseek_v3: THINK,
  mistral: MISTRAL_THINK,
  gemma4: GEMMA4_THINK,
};
/** gpt-oss's messages are thought, said or calls by their channel. */
const HARMONY_REASONING: readonly string[] = [HARMONY_NAME, "openai_gptoss"];

const NONE = "none";
const AUTO = "auto";

/** Values of the option for tool calls. */
export const TOOL_CALL_PARSERS: readonly string[] = [AUTO, NONE, ...Object.keys(TOOL_FORMATS)];
/** Values of the option for reasoning. */
export const REASONING_PARSERS: readonly string[] = [
  ...[AUTO, NONE],
  ...[...Object.keys(REASONING_FORMATS), ...HARMONY_REASONING],
];

export interface FormatOptions {
  /** One of `TOOL_CALL_PARSERS`. */
  readonly toolCallParser: string;
  /** One of `REASONING_PARSERS`. */
  readonly reasoningParser: string;
}

/** The forms of a model's turns. */
export interface ModelFormats {
  /** Turns in which calls count; undefined: the form of the model's calls is not known. */
  readonly withCalls: ToolFormat | undefined;
  /** Turns in which calls are text like any other. */
  readonly withoutCalls: ToolFormat;
  /** Undefined if the model does not think, or nobody knows in which form. */
  readonly reasoning: ReasoningFormat | typeof HARMONY_NAME | undefined;
  /** Tokens that end a turn besides those that the model's configuration names. */
  readonly stops: readonly string[];
  /** The part of the turn that a prompt has. @param continued the message that the model continues, if it does. */
  begun(prompt: string, continued: string | undefined): string;
}

/**
 * The forms of a model's turns, by its chat template unless the options say otherwise.
 * @throws ConfigError naming the option.
 */
export function formatsOf(options: FormatOptions, template: string | undefined): ModelFormats {
  const named = (name: string, detected: string) => (name === AUTO ? detected : name);
  const toolName = named(options.toolCallParser, detectTools(template ?? ""));
  const reasoningName = named(options.reasoningParser, detectReasoning(template ?? ""));
  const tools = Object.hasOwn(TOOL_FORMATS, toolName) ? TOOL_FORMATS[toolName] : undefined;
  if (toolName !== NONE && !tools) throw unknown("toolCallParser", toolName, TOOL_CALL_PARSERS);
  const isHarmony = tools === HARMONY;
  if (isHarmony || HARMONY_REASONING.includes(reasoningName)) {
    if ((tools && !isHarmony) || (!HARMONY_REASONING.includes(reasoningName) && reasoningName !== NONE))
      throw new ConfigError("reasoningParser", `${toolName} and ${reasoningName} do not go together`);
    return {
      withCalls: isHarmony ? HARMONY : undefined,
      withoutCalls: HARMONY_WITHOUT_CALLS,
      ...{ reasoning: HARMONY_NAME, stops: HARMONY_STOPS, begun: harmonyBegun },
    };
  }
  const reasoning = Object.hasOwn(REASONING_FORMATS, reasoningName)
    ? REASONING_FORMATS[reasoningName]
    : undefined;
  if (reasoningName !== NONE && !reasoning)
    throw unknown("reasoningParser", reasoningName, REASONING_PARSERS);
  const whole = (format: ToolFormat) => (reasoning ? thinkingBefore(format, reasoning) : format);
  return {
    withCalls: tools && whole(tools),
    withoutCalls: whole(PLAIN),
    ...{ reasoning, stops: tools === GEMMA4 || reasoning === GEMMA4_THINK ? GEMMA4_STOPS : [] },
    begun: (prompt, continued) => (reasoning ? thinkingBegun(prompt, continued, reasoning) : ""),
  };
}

/** The name of the form in which a chat template writes calls down, or tells the model to. */
function detectTools(template: string): string {
  const has = (text: string) => template.includes(text);
  if (has("<|channel|>")) return HARMONY_NAME;
  if (has("<|tool_call>call:")) return "gemma4";
  if (has("<function=")) return "qwen3_coder";
  if (has("<tool_call>") && !has("<arg_key>") && /['"\\]name\b/.test(template)) return "hermes";
  if (has("[TOOL_CALLS]")) return "mistral";
  if (has("<｜tool▁calls▁begin｜>")) return has("```json") ? "deepseek_v3" : "deepseek_v31";
  if (has('"parameters": dictionary of argument name')) return "llama3_json";
  if (has("[func_name1(")) return "pythonic";
  return NONE;
}

/** The name of the form in which a chat template writes thoughts down, or takes them out. */
function detectReasoning(template: string): string {
  const has = (text: string) => template.includes(text);
  if (has("<|channel|>")) return HARMONY_NAME;
  if (has("<|channel>") && has("<channel|>")) return "gemma4";
  if (has("[THINK]")) return "mistral";
  return has("</think>") ? "qwen3" : NONE;
}

function unknown(option: string, name: string, known: readonly string[]): ConfigError {
  return new ConfigError(option, `${option} "${name}" is none of ${known.join(", ")}`);
}
