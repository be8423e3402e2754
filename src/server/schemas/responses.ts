import { z } from "zod";
import { isJsonObject, type JsonObject } from "../../base/json-object.ts";
import type { ChatMessage } from "../../tokenizer/chat-template.ts";
import { invalidValue, unsupported } from "../errors.ts";
import { type ChatRequest, EFFORT, parseChat } from "./chat.ts";
import { flatTools, inTermsOf } from "./flat-fields.ts";
import { generationShape, LIST, MODEL, OBJECT, parseBody, type UnknownFields } from "./request-body.ts";
import { type FindItem, hasReferences, inputMessages } from "./response-input.ts";
import { samplingShape } from "./sampling.ts";

const flag = z.boolean().nullish();
/** Fields of the completions' endpoints that have another name here, or none. */
const { n: _, max_tokens: __, prompt_logprobs: ___, stop: ____, ...SAMPLING } = samplingShape;

/** Fields that mean the same in chat completions. */
const SHARED: ReadonlySet<string> = new Set([
  ...Object.keys(SAMPLING),
  ...["model", "stream", "stream_interval", "parallel_tool_calls", "chat_template_kwargs"],
  ...["thinking_token_budget", "cache_salt", "request_id"],
]);

/** Body of `/v1/responses`. */
export const ResponsesBody = z.object({
  model: MODEL,
  ...SAMPLING,
  input: z
    .unknown()
    .optional()
    .meta({
      description:
        "A text, or items: messages, function_call, function_call_output, reasoning, item_reference.",
      anyOf: [{ type: "string" }, { type: "array", items: { type: "object" } }],
    }),
  instructions: z.string().nullish().meta({ description: "The system's message, before all else." }),
  previous_response_id: z
    .string()
    .nullish()
    .meta({ description: "The response that the input goes on from." }),
  store: flag.meta({ description: "Keep the response, so that others can go on from it. Default true." }),
  stream: flag,
  stream_options: z.strictObject({ include_obfuscation: z.literal(false).nullish() }).nullish(),
  stream_interval: generationShape.stream_interval,
  max_output_tokens: z.number().nullish(),
  tools: LIST.nullish().meta({ description: "Functions that the model may call; other types are refused." }),
  tool_choice: z
    .unknown()
    .optional()
    .meta({ description: 'none, auto, required or {"type": "function", "name": …}' }),
  parallel_tool_calls: flag.meta({ description: "false: a response has the first call only. Default true." }),
  text: z.strictObject({ format: OBJECT.nullish(), verbosity: z.unknown().optional() }).nullish(),
  reasoning: z
    .strictObject({
      effort: EFFORT.nullish(),
      summary: z.unknown().optional(),
      generate_summary: z.unknown().optional(),
    })
    .nullish()
    .meta({
      description:
        "The effort is handed to the chat template. There are no summaries: thoughts come as they are.",
    }),
  metadata: OBJECT.nullish(),
  include: z.array(z.string()).nullish(),
  truncation: z.enum(["auto", "disabled"]).nullish(),
  chat_template_kwargs: OBJECT.nullish(),
  thinking_token_budget: z.number().nullish(),
  cache_salt: generationShape.cache_salt,
  request_id: generationShape.request_id,
});
export type ResponsesBody = z.infer<typeof ResponsesBody>;

export interface ResponsesRequest {
  readonly body: Omit<ResponsesBody, "input">;
  /** The input alone: neither the instructions nor what it goes on from. */
  readonly chat: ChatRequest;
  /** Characters of the input as JSON. */
  readonly inputSize: number;
  /** The input as it came, if it refers to items of stored responses: `withItems` is to find them. */
  readonly references?: unknown;
}

/** Fields that only OpenAI's own service can honour, and values that ask for nothing. */
const REFUSED: readonly (readonly [name: string, ...harmless: unknown[]])[] = [
  ["background", false],
  ["conversation"],
  ["prompt"],
  ["max_tool_calls"],
  ["context_management"],
  ["moderation"],
  ["top_logprobs", 0],
  ["truncation", "disabled"],
];
/** Output that `include` may ask for: it is in a response anyway, or never. */
const INCLUDED = ["reasoning.encrypted_content"];

/** The names of chat completions' fields here. */
const RESPONSE_NAMES: Readonly<Record<string, string>> = {
  messages: "input",
  max_completion_tokens: "max_output_tokens",
  max_tokens: "max_output_tokens",
  response_format: "text.format",
  reasoning_effort: "reasoning.effort",
};

/**
 * Checks a body of `/v1/responses`.
 * @throws ApiError naming the field.
 */
export function parseResponses(json: JsonObject, onUnknown: UnknownFields): ResponsesRequest {
  for (const [name, ...harmless] of REFUSED) {
    const value = json[name] ?? undefined;
    if (value === undefined || harmless.includes(value)) continue;
    throw unsupported(name, `${name} is not supported`);
  }
  const { input, ...body } = parseBody(ResponsesBody, json, (names) =>
    onUnknown(names.filter((name) => !REFUSED.some(([refused]) => refused === name))),
  );
  const included = body.include?.find((name) => !INCLUDED.includes(name));
  if (included !== undefined) throw unsupported("include", `include: "${included}" is not supported`);
  const verbosity = body.text?.verbosity ?? undefined;
  if (verbosity !== undefined && verbosity !== "medium")
    throw unsupported("text.verbosity", "text.verbosity is not supported yet");
  const messages = inputMessages(input);
  const { max_output_tokens, tools, tool_choice, text, reasoning } = body;
  const chat = {
    ...Object.fromEntries(Object.entries(body).filter(([name]) => SHARED.has(name))),
    messages,
    max_completion_tokens: max_output_tokens,
    // An empty list is what clients send that have none.
    ...(tools &&
      tools.length > 0 && { tools: tools.map(functionTool), tool_choice: toolChoice(tool_choice) }),
    response_format: text?.format && responseFormat(text.format),
    reasoning_effort: reasoning?.effort,
  };
  return {
    body,
    chat: inTermsOf(RESPONSE_NAMES, () => parseChat(chat, () => {})),
    inputSize: sizeOf(messages),
    ...(hasReferences(input) && { references: input }),
  };
}

/** The request with the items that it refers to. @throws ApiError as `find` does. */
export function withItems(request: ResponsesRequest, find: FindItem): ResponsesRequest {
  const { chat, references, ...rest } = request;
  if (references === undefined) return request;
  const messages = inputMessages(references, find);
  return { ...rest, chat: { ...chat, prompt: { ...chat.prompt, messages } }, inputSize: sizeOf(messages) };
}

function sizeOf(messages: readonly ChatMessage[]): number {
  return JSON.stringify(messages, spelled).length;
}

/** The names of the engine's parameters in a request, for `GenerationRequest`. */
export function responseNames({ body }: Pick<ResponsesRequest, "body">): Readonly<Record<string, string>> {
  return {
    ...{ prompt: "input", promptTokenIds: "input", messages: "input" },
    ...{
      maxTokens: "max_output_tokens",
      responseFormat: "text.format",
      reasoning_effort: "reasoning.effort",
    },
    ...flatTools(body.tools ?? []),
  };
}

function spelled(_: string, value: unknown): unknown {
  return typeof value === "bigint" ? String(value) : value;
}

function functionTool(tool: unknown, i: number): unknown {
  if (!isJsonObject(tool)) throw invalidValue(`tools[${i}]`, `tools[${i}] must be an object`);
  // Clients say that they do not ask for it, which templates would show to the model.
  const { type, strict, ...rest } = tool;
  const definition = strict === false || strict === null || strict === undefined ? rest : { ...rest, strict };
  if (type !== "function")
    throw unsupported(`tools[${i}].type`, `tools[${i}].type: only "function" is supported`, 400);
  return { type, function: definition };
}

function toolChoice(choice: unknown): unknown {
  if (!isJsonObject(choice) || choice["type"] !== "function") return choice;
  return { type: "function", function: { name: choice["name"] } };
}

/** A format is flat here, which is nested in chat completions. */
function responseFormat({ type, ...schema }: JsonObject): object {
  return type === "json_schema" ? { type, json_schema: schema } : { type };
}

/** A conversation with messages before the input: those that it goes on from, and the instructions before all. */
export function withHistory(
  { chat, body }: Pick<ResponsesRequest, "chat" | "body">,
  history: readonly ChatMessage[],
): ChatRequest {
  const { instructions } = body;
  const system = instructions ? [{ role: "system", content: instructions }] : [];
  const messages = [...system, ...history, ...chat.prompt.messages];
  return { ...chat, prompt: { ...chat.prompt, messages } };
}
