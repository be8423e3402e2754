import { z } from "zod";
import { isJsonObject, type JsonObject } from "../../base/json-object.ts";
import { invalidValue, unsupported } from "../errors.ts";
import { anthropicMessages, systemText } from "./anthropic-messages.ts";
import { type ChatRequest, parseChat } from "./chat.ts";
import { flatTools, inTermsOf } from "./flat-fields.ts";
import { generationShape, LIST, MODEL, OBJECT, parseBody, type UnknownFields } from "./request-body.ts";

const THINKING = ["enabled", "adaptive", "disabled"] as const;
const EFFORTS = ["low", "medium", "high", "xhigh", "max"] as const;

const conversation = {
  model: MODEL,
  messages: z.unknown().optional().meta({
    description:
      "Messages of user and assistant, of text or blocks; a last one of the assistant's is continued.",
    type: "array",
  }),
  system: z.unknown().optional().meta({ description: "A text, or text blocks." }),
  tools: LIST.nullish().meta({
    description: "Tools with an input_schema; the server's own tools are refused.",
  }),
  tool_choice: OBJECT.nullish().meta({ description: "auto, any, none, or tool with its name." }),
  thinking: z
    .object({
      type: z.enum(THINKING),
      budget_tokens: z.number().nullish(),
      display: z.literal("summarized").nullish(),
    })
    .nullish()
    .meta({ description: "Left out: as the model's chat template has it." }),
  output_config: z.strictObject({ format: OBJECT.nullish(), effort: z.enum(EFFORTS).nullish() }).nullish(),
  chat_template_kwargs: OBJECT.nullish(),
};

/** Body of `/v1/messages`. */
export const MessagesBody = z.object({
  ...conversation,
  max_tokens: z.number(),
  stop_sequences: z
    .unknown()
    .optional()
    .meta({ type: "array", items: { type: "string" }, maxItems: 16 }),
  stream: z.boolean().nullish(),
  temperature: z.number().nullish(),
  top_p: z.number().nullish(),
  top_k: z.number().nullish(),
  cache_salt: generationShape.cache_salt,
});

/** Body of `/v1/messages/count_tokens`. */
export const CountTokensBody = z.object(conversation);

type ConversationBody = z.infer<typeof CountTokensBody>;

export interface MessagesRequest {
  readonly chat: ChatRequest;
  /** Tools as they were given. */
  readonly tools: readonly unknown[];
}

/** Fields that only Anthropic's own service can honour, and values that ask for nothing. */
const REFUSED: readonly (readonly [name: string, ...harmless: unknown[]])[] = [
  ["container"],
  ["mcp_servers"],
  ["context_management"],
  ["speed", "standard"],
];
/** Fields that hint at what happens anyway, or keep the caller's accounts. */
const INERT: readonly string[] = ["cache_control", "inference_geo", "diagnostics", "betas"];

/**
 * Checks a body of `/v1/messages`.
 * @throws ApiError naming the field.
 */
export function parseMessagesRequest(json: JsonObject, onUnknown: UnknownFields): MessagesRequest {
  const body = parse(MessagesBody, json, onUnknown);
  return requestOf(body, {
    ...{ max_completion_tokens: body.max_tokens, stop: body.stop_sequences, stream: body.stream },
    ...{ temperature: body.temperature, top_p: body.top_p, top_k: body.top_k, cache_salt: body.cache_salt },
  });
}

/** The same for `/v1/messages/count_tokens`. */
export function parseCountTokens(json: JsonObject, onUnknown: UnknownFields): MessagesRequest {
  return requestOf(parse(CountTokensBody, json, onUnknown), {});
}

function parse<Shape extends z.ZodRawShape>(
  schema: z.ZodObject<Shape>,
  { service_tier: _, ...json }: JsonObject,
  onUnknown: UnknownFields,
): z.infer<z.ZodObject<Shape>> {
  for (const [name, ...harmless] of REFUSED) {
    const value = json[name] ?? undefined;
    if (value !== undefined && !harmless.includes(value)) throw unsupported(name, `${name} is not supported`);
  }
  const known = [...REFUSED.map(([name]) => name), ...INERT];
  return parseBody(schema, json, (names) => onUnknown(names.filter((name) => !known.includes(name))));
}

function requestOf(body: ConversationBody, generation: object): MessagesRequest {
  const { model, thinking, output_config: output, chat_template_kwargs: kwargs } = body;
  const { messages, isContinued } = anthropicMessages(body.messages);
  const system = systemText(body.system);
  const tools = body.tools ?? [];
  const choice = body.tool_choice ?? undefined;
  const chat = {
    ...generation,
    ...{ model, messages: [...(system === "" ? [] : [{ role: "system", content: system }]), ...messages] },
    ...(tools.length > 0 && { tools: tools.map(functionTool) }),
    ...(choice && { tool_choice: toolChoice(choice) }),
    parallel_tool_calls: choice?.["disable_parallel_tool_use"] === true ? false : undefined,
    ...(isContinued && { continue_final_message: true, add_generation_prompt: false }),
    response_format: output?.format && responseFormat(output.format),
    reasoning_effort: effortOf(body),
    thinking_token_budget: thinking?.type === "enabled" ? thinking.budget_tokens : undefined,
    chat_template_kwargs: {
      ...(thinking && thinking.type !== "disabled" && { enable_thinking: true, thinking: true }),
      ...kwargs,
    },
  };
  return { tools, chat: inTermsOf(NAMES, () => parseChat(chat, () => {})) };
}

/** The names of chat completions' fields here. */
const NAMES: Readonly<Record<string, string>> = {
  ...{ max_completion_tokens: "max_tokens", stop: "stop_sequences", response_format: "output_config.format" },
  ...{ thinking_token_budget: "thinking.budget_tokens", reasoning_effort: "output_config.effort" },
};

/** The names of the engine's parameters in a request, for `GenerationRequest`. */
export function messagesNames({ tools }: MessagesRequest): Readonly<Record<string, string>> {
  return {
    ...NAMES,
    ...{ prompt: "messages", promptTokenIds: "messages", maxTokens: "max_tokens", stop: "stop_sequences" },
    ...{ responseFormat: "output_config.format" },
    ...flatTools(tools, "input_schema"),
  };
}

function effortOf({ thinking, output_config: output }: ConversationBody): string | undefined {
  if (thinking?.type === "disabled") return "none";
  const { effort } = output ?? {};
  return effort === "max" ? "xhigh" : (effort ?? undefined);
}

/** A format is flat here, which is nested in chat completions. */
function responseFormat({ type, schema }: JsonObject): object {
  if (type !== "json_schema")
    throw invalidValue("output_config.format.type", 'output_config.format.type must be "json_schema"');
  return { type, json_schema: { name: "output", schema, strict: true } };
}

function functionTool(tool: unknown, i: number): unknown {
  const where = `tools[${i}]`;
  if (!isJsonObject(tool)) throw invalidValue(where, `${where} must be an object`);
  const { type, name, description, input_schema: parameters, strict } = tool;
  if ((type ?? "custom") !== "custom")
    throw unsupported(`${where}.type`, `${where}.type: only tools of the caller's own are supported`, 400);
  if (!isJsonObject(parameters))
    throw invalidValue(
      `${where}.input_schema`,
      `${where}.input_schema must be a JSON schema, which is an object`,
    );
  return {
    type: "function",
    function: { name, description, parameters, ...(strict === true && { strict }) },
  };
}

function toolChoice({ type, name }: JsonObject): unknown {
  if (type === "any") return "required";
  if (type === "tool") return { type: "function", function: { name } };
  if (type === "auto" || type === "none") return type;
  throw invalidValue("tool_choice.type", "tool_choice.type must be auto, any, tool or none");
}
