import { parse, tokenize } from "@huggingface/jinja";
import { ChatTemplateError, InvalidRequestError, ModelDataError, messageOf } from "../base/errors.ts";
import { TemplateInterpreter } from "./template-interpreter.ts";

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
  /** Functions that the model may call, in OpenAI's form. */
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
const RESERVED = new Set(["messages", "add_generation_prompt", "namespace"]);
const MAX_SOURCE_LENGTH = 2 ** 18;
/** The parser is quadratic in a run of white space. */
const LONG_BLANK = /\s{513}/;

/**
 * A model's chat template. It comes from an untrusted folder: rendering runs within the limits that
 * `TemplateInterpreter` states, and the source is at most 2^18 characters.
 */
export class ChatTemplate {
  /** Whether the template iterates over the content's parts, and so wants a list, or expects a string. */
  readonly contentFormat: "string" | "parts";
  /** Whether the template distinguishes a missing content from an empty one. */
  readonly #testsForNone: boolean;
  readonly #program: ReturnType<typeof parse>;
  readonly #specialTokens: Readonly<Record<string, string>>;

  /**
   * @param source the Jinja source
   * @param specialTokens variables such as `bos_token`, as `Tokenizer.specialTokens` gives them
   * @throws ModelDataError if the source does not parse
   */
  constructor(source: string, specialTokens: Readonly<Record<string, string>> = {}) {
    if (source.length > MAX_SOURCE_LENGTH || LONG_BLANK.test(source)) {
      throw new ModelDataError("chat_template", "is too long, or holds more than 512 blanks in a row");
    }
    try {
      this.#program = parse(tokenize(source, { lstrip_blocks: true, trim_blocks: true }));
      const uses = contentUses(this.#program);
      this.contentFormat = uses.has("For") ? "parts" : "string";
      this.#testsForNone = uses.has("TestExpression");
    } catch (cause) {
      throw new ModelDataError("chat_template", messageOf(cause), { cause });
    }
    this.#specialTokens = specialTokens;
  }

  /**
   * The prompt of a conversation, special tokens included: encode it with `addSpecialTokens: false`.
   * @throws InvalidRequestError if the messages or options are invalid
   * @throws ChatTemplateError if the template refuses them, fails, or exceeds its limits
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
    const texts = messages.map((message) => contentText(message));
    if (continueFinalMessage) {
      if (messages.length === 0) throw new InvalidRequestError("messages", "there is no message to continue");
      texts.push(`${texts.pop()}${MARKER} `);
    }
    const rendered = this.#run({
      ...this.#specialTokens,
      documents: null,
      tools: tools ?? null,
      ...kwargs,
      messages: messages.map((message, i) => this.#normalise(message, texts[i]!)),
      add_generation_prompt: addGenerationPrompt ?? !continueFinalMessage,
    });
    return continueFinalMessage ? cutAtMarker(rendered) : rendered;
  }

  #run(inputs: Readonly<Record<string, unknown>>): string {
    try {
      return String(new TemplateInterpreter(inputs, GLOBALS).run(this.#program).value);
    } catch (error) {
      throw new ChatTemplateError(messageOf(error));
    }
  }

  #normalise(message: ChatMessage, text: string): ChatMessage {
    const parts = this.contentFormat === "parts" ? [{ type: "text" as const, text }] : text;
    const content = text === "" && this.#testsForNone ? null : parts;
    const { tool_calls: calls, ...fields } = message;
    const given = Object.fromEntries(
      Object.entries(fields).filter(([, value]) => (value ?? undefined) !== undefined),
    );
    const called = Array.isArray(calls) && calls.length > 0;
    return {
      ...given,
      role: message.role,
      content,
      ...(called && { tool_calls: calls.map(parseArguments) }),
    };
  }
}

const GLOBALS = {
  true: true,
  false: false,
  none: null,
  True: true,
  False: false,
  None: null,
  raise_exception: (message: unknown) => {
    throw new Error(String(message));
  },
  strftime_now: (format: unknown) => strftime(new Date(), String(format)),
};

function contentText(message: ChatMessage): string {
  if (typeof message !== "object" || message === null || typeof message.role !== "string")
    throw new InvalidRequestError("messages", "each message must be an object with a role");
  const { content } = message;
  if (content === undefined || content === null) return "";
  if (typeof content === "string") return content;
  if (
    Array.isArray(content) &&
    content.every((part) => part?.type === "text" && typeof part.text === "string")
  ) {
    return content.map((part: TextPart) => part.text).join("\n");
  }
  throw new InvalidRequestError("messages", "content must be a string or a list of text parts");
}

/** OpenAI sends a call's arguments as JSON text; templates expect the object. */
function parseArguments(call: unknown): unknown {
  const fn = (call as { function?: { arguments?: unknown } } | null)?.function;
  if (typeof fn?.arguments !== "string") return call;
  try {
    return { ...(call as object), function: { ...fn, arguments: JSON.parse(fn.arguments || "{}") } };
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

/**
 * What a template does with a message's `content`, reached directly or through a variable set to it: iterate over it
 * (`For`), ask whether it is none (`TestExpression`).
 */
function contentUses(program: unknown): Set<"For" | "TestExpression"> {
  const uses = new Set<"For" | "TestExpression">();
  const aliases = new Set<unknown>();
  const isContent = (expression: unknown): boolean => {
    const { type, value, property, lhs } = expression as SyntaxNode;
    if (type === "SelectExpression") return isContent(lhs);
    if (type === "MemberExpression") return (property as SyntaxNode).value === "content";
    return type === "Identifier" && aliases.has(value);
  };
  const visit = (node: unknown): void => {
    if (typeof node !== "object" || node === null) return;
    const { type, assignee, value, iterable, operand, test } = node as SyntaxNode;
    if (type === "Set" && value && isContent(value)) aliases.add((assignee as SyntaxNode).value);
    if (type === "For" && isContent(iterable)) uses.add(type);
    if (type === "TestExpression" && isContent(operand) && (test as SyntaxNode).value === "none")
      uses.add(type);
    Object.values(node).forEach(visit);
  };
  visit(program);
  return uses;
}

interface SyntaxNode {
  readonly type?: unknown;
  readonly [field: string]: unknown;
}

/** Python's `strftime` in the C locale, local time; a directive that is not known stays as it is. */
function strftime(date: Date, format: string): string {
  const digits = (value: number, width = 2) => String(value).padStart(width, "0");
  const name = (options: Intl.DateTimeFormatOptions) => date.toLocaleString("en-US", options);
  const dayOfYear = () =>
    1 +
    Math.round(
      (new Date(date).setHours(0, 0, 0, 0) - new Date(date.getFullYear(), 0, 1).getTime()) / 86_400_000,
    );
  const directives: Record<string, () => string> = {
    Y: () => digits(date.getFullYear(), 4),
    y: () => digits(date.getFullYear() % 100),
    m: () => digits(date.getMonth() + 1),
    d: () => digits(date.getDate()),
    e: () => String(date.getDate()).padStart(2),
    H: () => digits(date.getHours()),
    I: () => digits(date.getHours() % 12 || 12),
    M: () => digits(date.getMinutes()),
    S: () => digits(date.getSeconds()),
    p: () => (date.getHours() < 12 ? "AM" : "PM"),
    a: () => name({ weekday: "short" }),
    A: () => name({ weekday: "long" }),
    b: () => name({ month: "short" }),
    B: () => name({ month: "long" }),
    j: () => digits(dayOfYear(), 3),
    "%": () => "%",
  };
  return format.replace(/%(.)/g, (directive, letter: string) => directives[letter]?.() ?? directive);
}
