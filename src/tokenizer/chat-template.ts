import { ChatTemplateError, InvalidRequestError, ModelDataError, messageOf } from "../base/errors.ts";
import { parseExactJson } from "../base/exact-json.ts";
import { BudgetError } from "./template/budget.ts";
import { render } from "./template/interpreter.ts";
import { strftime } from "./template/strftime.ts";
import { type Node, parseTemplate, walk } from "./template/syntax.ts";
import { MissingVariableError, type Value } from "./template/values.ts";

/** A part of a message that is text, in OpenAI's form. */
export interface TextPart {
  type: "text";
  text: string;
}

/**
 * One turn of a conversation. Further fields (`name`, `tool_calls`, `tool_call_id`, …) reach the template unless they
 * are null or empty; the arguments of tool calls may be JSON text or objects.
 */
export interface ChatMessage {
  role: string;
  content?: string | readonly TextPart[] | null | undefined;
  [field: string]: unknown;
}

export interface RenderOptions {
  /** Functions that the model may call, in OpenAI's form. A boxed number (`new Number(1)`) is printed as a float: `1.0`. */
  tools?: readonly unknown[] | undefined;
  /** End with the beginning of the assistant's turn. Default true, or false with `continueFinalMessage`. */
  addGenerationPrompt?: boolean | undefined;
  /** End inside the last message, right after its content, so that the model continues it. Default false. */
  continueFinalMessage?: boolean | undefined;
  /** Variables of the template, such as `enable_thinking` or `documents`. */
  [templateKwarg: string]: unknown;
}

/** Stands after the final message's content while it is rendered; the space shows whether the template trims. */
const MARKER = "\u{F0000}octavo-continue\u{F0000}";
const RESERVED = new Set([
  "messages",
  "add_generation_prompt",
  "namespace",
  "range",
  "dict",
  "raise_exception",
]);
const MAX_SOURCE_LENGTH = 2 ** 18;
/** The parser is quadratic in a run of white space. */
const LONG_BLANK = /\s{513}/;

/** Conversations that templates of real models are rendered with when loaded; some want a system message or an answer. */
const PROBE = "octavo-probe";
const PROBES: readonly (readonly string[])[] = [
  ["user"],
  ["system", "user"],
  ["user", "assistant", "user"],
  ["system", "user", "assistant", "user"],
  ["user", "assistant"],
];
const PROBE_TOOL = {
  type: "function",
  function: { name: "probe", description: PROBE, parameters: { type: "object", properties: {} } },
};

const FUNCTIONS = {
  raise_exception: ([message = "the template raises an exception"]: readonly Value[]): Value => {
    throw new Error(String(message));
  },
  strftime_now: ([format]: readonly Value[]): Value => strftime(new Date(), String(format)),
};

/**
 * A model's chat template. It comes from an untrusted folder: rendering runs within the limits that `Budget` states,
 * and the source is at most 2^18 characters.
 */
export class ChatTemplate {
  readonly #program: Node;
  readonly #specialTokens: Readonly<Record<string, string>>;
  /** True if a text as content appears in the prompt; templates that only know lists of parts lose it. */
  readonly #takesText: boolean;
  /** True if a list of parts does, as a text would. */
  readonly #takesParts: boolean;
  /** True if the template asks if a content is none, as it then expects of one that is missing. */
  readonly #asksForNone: boolean;

  /**
   * @param source the Jinja source
   * @param specialTokens variables such as `bos_token`, as `Tokenizer.specialTokens` gives them
   * @param file where the source is from, for messages
   * @throws ModelDataError if the source does not parse, fails for every conversation that it is tried with, or
   * exceeds its budget
   */
  constructor(
    readonly source: string,
    specialTokens: Readonly<Record<string, string>> = {},
    file = "chat_template",
  ) {
    if (source.length > MAX_SOURCE_LENGTH || LONG_BLANK.test(source)) {
      throw new ModelDataError(file, "the chat template is too long, or holds more than 512 blanks in a row");
    }
    try {
      this.#program = parseTemplate(source);
      this.#asksForNone = asksForNone(this.#program);
    } catch (cause) {
      throw new ModelDataError(file, `the chat template is malformed: ${messageOf(cause)}`, { cause });
    }
    this.#specialTokens = specialTokens;
    const { text, parts } = this.#try(file);
    const showsParts = parts?.includes(PROBE) === true;
    this.#takesText = text?.includes(PROBE) === true || !showsParts;
    this.#takesParts = showsParts && (!this.#takesText || parts === text);
  }

  /**
   * The prompt of a conversation, special tokens included: encode it with `addSpecialTokens: false`.
   * @throws InvalidRequestError if the messages or options are invalid
   * @throws ChatTemplateError if the template refuses them, fails, or exceeds its budget
   */
  render(messages: readonly ChatMessage[], options: RenderOptions = {}): string {
    const { tools, addGenerationPrompt, continueFinalMessage = false, ...kwargs } = options;
    if (continueFinalMessage && addGenerationPrompt) {
      throw new InvalidRequestError(
        "continueFinalMessage",
        "continueFinalMessage and addGenerationPrompt exclude each other",
      );
    }
    const reserved = Object.keys(kwargs).find((name) => RESERVED.has(name));
    if (reserved !== undefined) {
      throw new InvalidRequestError("chatTemplateKwargs", `${reserved} is not a template argument`);
    }
    if (continueFinalMessage && messages.length === 0) {
      throw new InvalidRequestError("messages", "there is no message to continue");
    }
    const last = messages.length - 1;
    const normalised = messages.map((message, i) =>
      this.#normalise(message, continueFinalMessage && i === last),
    );
    const withText = normalised.map((message, i) =>
      message["tool_calls"] === undefined ? message : { ...message, tool_calls: messages[i]!["tool_calls"] },
    );
    const variables = {
      tools: tools ?? null,
      ...kwargs,
      add_generation_prompt: addGenerationPrompt ?? !continueFinalMessage,
    };
    const rendered = this.#render([normalised, withText], variables);
    return continueFinalMessage ? cutAtMarker(rendered) : rendered;
  }

  /**
   * A template that cannot do with a content that is missing gets an empty one, and one that joins the arguments of calls
   * to its text gets them as the text that the client sent.
   */
  #render(
    [messages, withText]: readonly [readonly ChatMessage[], readonly ChatMessage[]],
    variables: Readonly<Record<string, unknown>>,
  ): string {
    const isMissing = ({ content }: ChatMessage) => (content ?? undefined) === undefined;
    const complete = (list: readonly ChatMessage[]) =>
      list.map((message) => (isMissing(message) ? { ...message, content: "" } : message));
    const hasCalls = messages.some(({ tool_calls: calls }) => calls !== undefined);
    const variants = [messages, ...(hasCalls ? [withText] : [])];
    if (messages.some(isMissing)) variants.splice(1, 0, ...variants.map(complete));
    const failures: unknown[] = [];
    for (const variant of variants) {
      try {
        return this.#run(variant, variables);
      } catch (error) {
        failures.push(error);
        if (error instanceof BudgetError) break;
      }
    }
    throw new ChatTemplateError(messageOf(failures[0]));
  }

  #run(messages: readonly ChatMessage[], variables: Readonly<Record<string, unknown>>): string {
    const inputs = { ...this.#specialTokens, documents: null, ...variables, messages };
    return render(this.#program, inputs, FUNCTIONS);
  }

  /** The first of a few plain conversations that the template renders, with its contents as texts and as parts. */
  #try(file: string): { text: string | undefined; parts: string | undefined } {
    const failures: unknown[] = [];
    const attempt = (
      roles: readonly string[],
      content: ChatMessage["content"],
      tools: readonly unknown[] | null,
    ) => {
      try {
        const messages = roles.map((role) => ({ role, content }));
        return this.#run(messages, { tools, add_generation_prompt: roles.at(-1) === "user" });
      } catch (error) {
        if (error instanceof BudgetError) throw new ModelDataError(file, error.message, { cause: error });
        failures.push(error);
        return undefined;
      }
    };
    for (const tools of [null, [PROBE_TOOL]]) {
      for (const roles of PROBES) {
        const text = attempt(roles, PROBE, tools);
        const parts = attempt(roles, [{ type: "text", text: PROBE }], tools);
        if (text !== undefined || parts !== undefined) return { text, parts };
      }
    }
    // A request may bring the variable.
    if (failures.some((failure) => failure instanceof MissingVariableError))
      return { text: undefined, parts: undefined };
    throw new ModelDataError(file, `the chat template renders no conversation: ${messageOf(failures[0])}`, {
      cause: failures[0],
    });
  }

  #normalise(message: ChatMessage, continued: boolean): ChatMessage {
    const content = this.#content(message, continued);
    const { tool_calls: calls, content: _, ...fields } = message;
    const reasoning = fields["reasoning_content"] ?? fields["thinking"] ?? fields["reasoning"] ?? undefined;
    // In the client's order, which a template that prints a message as JSON shows.
    const given = Object.entries({
      ...message,
      content,
      tool_calls: Array.isArray(calls) && calls.length > 0 ? calls.map(parseArguments) : undefined,
      ...(reasoning !== undefined && {
        thinking: fields["thinking"] ?? reasoning,
        reasoning_content: reasoning,
      }),
    });
    return {
      ...Object.fromEntries(
        given.filter(([name, value]) => value !== undefined && (value !== null || name === "content")),
      ),
      role: message.role,
    };
  }

  /** The content in a form that the template takes; undefined or null if there is none. */
  #content(message: ChatMessage, continued: boolean): ChatMessage["content"] {
    checkMessage(message);
    const { content } = message;
    if (typeof content === "object" && content !== null && this.#takesParts) {
      const end = continued ? content.length - 1 : -1;
      return content.map((part, i) => (i === end ? { ...part, text: `${part.text}${MARKER} ` } : part));
    }
    if ((content === undefined || content === null) && !continued)
      return this.#asksForNone ? null : undefined;
    const joined =
      typeof content === "string" ? content : (content ?? []).map((part) => part.text).join("\n");
    const text = continued ? `${joined}${MARKER} ` : joined;
    return this.#takesText ? text : [{ type: "text", text }];
  }
}

function checkMessage(message: ChatMessage): void {
  if (typeof message !== "object" || message === null || typeof message.role !== "string")
    throw new InvalidRequestError("messages", "each message must be an object with a role");
  const { content } = message;
  if (content === undefined || content === null || typeof content === "string") return;
  const isText = (part: TextPart) => part?.type === "text" && typeof part.text === "string";
  if (!Array.isArray(content) || !content.every(isText))
    throw new InvalidRequestError("messages", "content must be a string or a list of text parts");
}

/** OpenAI sends a call's arguments as JSON text; templates expect the object. */
function parseArguments(call: unknown): unknown {
  const fn = (call as { function?: { arguments?: unknown } } | null)?.function;
  if (typeof fn?.arguments !== "string") return call;
  try {
    return { ...(call as object), function: { ...fn, arguments: parseExactJson(fn.arguments || "{}") } };
  } catch (error) {
    throw new InvalidRequestError("messages", `a tool call's arguments are not JSON: ${messageOf(error)}`);
  }
}

/** A template that trims the content loses the blanks around the cut. */
function cutAtMarker(rendered: string): string {
  const at = rendered.lastIndexOf(MARKER);
  if (at < 0) throw new ChatTemplateError("the final message does not appear in the rendered conversation");
  const text = rendered.slice(0, at);
  return rendered[at + MARKER.length] === " " ? text : text.trimEnd();
}

/** True if a template asks if a message's content is none, or a variable set to it. */
function asksForNone(program: Node): boolean {
  const aliases = new Set<string>();
  const isContent = (node: Node): boolean => {
    if (node.type === "Identifier") return aliases.has(node.value);
    if (node.type !== "MemberExpression") return false;
    const { property } = node;
    return (
      (property.type === "Identifier" || property.type === "StringLiteral") && property.value === "content"
    );
  };
  let asked = false;
  walk(program, (node) => {
    if (
      node.type === "Set" &&
      node.value !== null &&
      isContent(node.value) &&
      node.assignee.type === "Identifier"
    ) {
      aliases.add(node.assignee.value);
    }
    asked ||= node.type === "TestExpression" && node.test.value === "none" && isContent(node.operand);
  });
  return asked;
}
