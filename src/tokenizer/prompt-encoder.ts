import { ContextLengthError, InvalidRequestError } from "../base/errors.ts";
import { MAX_BAD_WORD_TOKENS } from "../base/sampling-params.ts";
import type { ChatMessage, ChatTemplate } from "./chat-template.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** A text to continue, or token ids. */
export type Prompt = string | TextPrompt | TokensPrompt;

/** A text to continue. */
export interface TextPrompt {
  readonly prompt: string;
  /** Requests share cached prefixes only with requests of the same salt. 1–256 bytes of UTF-8. */
  readonly cacheSalt?: string;
}

/** Token ids to continue. */
export interface TokensPrompt {
  readonly promptTokenIds: readonly number[];
  readonly cacheSalt?: string;
}

/** A conversation to continue, rendered with the model's chat template. */
export interface ChatPrompt {
  readonly messages: readonly ChatMessage[];
  readonly chat?: ChatOptions;
  readonly cacheSalt?: string;
}

/** How the model's chat template renders a conversation. */
export interface ChatOptions {
  /** Functions that the model may call, in OpenAI's form. A boxed number (`new Number(1)`) is printed as a float: `1.0`. */
  tools?: readonly unknown[];
  /** End the prompt with the beginning of the assistant's turn. Default true, or false with `continueFinalMessage`. */
  addGenerationPrompt?: boolean;
  /** Continue the last message instead of answering it. Default false. */
  continueFinalMessage?: boolean;
  /** Variables of the template, such as `enable_thinking`. */
  chatTemplateKwargs?: Readonly<Record<string, unknown>>;
}

export interface EncodedPrompt {
  /** Undefined for token ids. */
  readonly text: string | undefined;
  readonly tokenIds: readonly number[];
  readonly cacheSalt: string | undefined;
}

export interface PromptOptions {
  /** Default true for text; false for conversations, whose template writes special tokens itself. */
  readonly addSpecialTokens?: boolean | undefined;
  /** Tokens of prompt and output that there is room for; a text that is certain to have more is not encoded. Default any. */
  readonly room?: number | undefined;
}

export function isChat(prompt: Prompt | ChatPrompt): prompt is ChatPrompt {
  return typeof prompt === "object" && prompt !== null && "messages" in prompt;
}

/** The text of the conversation's last message. */
export function finalText({ messages }: ChatPrompt): string {
  const { content } = messages.at(-1)!;
  return typeof content === "string" ? content : (content ?? []).map((part) => part.text).join("\n");
}

/** Turns prompts from outside into tokens. */
export class PromptEncoder {
  /** @throws ModelDataError if the tokenizer cannot encode. */
  constructor(
    readonly tokenizer: Tokenizer | undefined,
    readonly chatTemplate: ChatTemplate | undefined,
  ) {
    tokenizer?.prepareEncoder();
  }

  /**
   * @throws InvalidRequestError for an empty or malformed prompt, or text without a tokenizer; ContextLengthError for a
   * text that is far too long; ChatTemplateError. The number of tokens, their ids and the length of the salt are checked
   * by the engine.
   */
  encode(prompt: Prompt | ChatPrompt, options: PromptOptions = {}): EncodedPrompt {
    if (isChat(prompt)) {
      const { messages, chat, ...rest } = prompt;
      const { addSpecialTokens } = options;
      const text = this.renderChat(messages, chat);
      return this.encode(
        { ...rest, prompt: text },
        { ...options, addSpecialTokens: addSpecialTokens ?? false },
      );
    }
    const given = typeof prompt === "string" ? { prompt } : prompt;
    if (typeof given !== "object" || given === null)
      throw new InvalidRequestError("prompt", "a prompt must be a string, { prompt } or { promptTokenIds }");
    const cacheSalt = given.cacheSalt;
    if (cacheSalt !== undefined && typeof cacheSalt !== "string")
      throw new InvalidRequestError("cacheSalt", "cacheSalt must be a string");
    if ("promptTokenIds" in given) {
      if (!Array.isArray(given.promptTokenIds))
        throw new InvalidRequestError("promptTokenIds", "promptTokenIds must be a list of token ids");
      return { text: undefined, tokenIds: given.promptTokenIds, cacheSalt };
    }
    const text = given.prompt;
    if (typeof text !== "string")
      throw new InvalidRequestError("prompt", "a prompt must be a string, { prompt } or { promptTokenIds }");
    if (this.tokenizer === undefined)
      throw new InvalidRequestError("prompt", "text prompts need a tokenizer; give promptTokenIds instead");
    if (!text.isWellFormed())
      throw new InvalidRequestError("prompt", "the prompt holds half of a surrogate pair", "invalid_unicode");
    if (text === "") throw new InvalidRequestError("prompt", "the prompt is empty", "empty_prompt");
    const { addSpecialTokens = true, room = Infinity } = options;
    this.#checkLength(this.tokenizer, text, room);
    const tokenIds = this.tokenizer.encode(text, { addSpecialTokens });
    return { text, tokenIds, cacheSalt };
  }

  /**
   * Text of a conversation, as the model sees it.
   * @throws InvalidRequestError without a template or messages; ChatTemplateError when the template fails.
   */
  renderChat(messages: readonly ChatMessage[], options: ChatOptions = {}): string {
    if (this.chatTemplate === undefined)
      throw new InvalidRequestError("messages", "the model has no chat template", "no_chat_template");
    if (!Array.isArray(messages))
      throw new InvalidRequestError("messages", "messages must be a list of messages");
    if (messages.length === 0)
      throw new InvalidRequestError("messages", "the conversation has no messages", "empty_prompt");
    const { tools, addGenerationPrompt, continueFinalMessage, chatTemplateKwargs } = options;
    return this.chatTemplate.render(messages, {
      ...chatTemplateKwargs,
      ...{ tools, addGenerationPrompt, continueFinalMessage },
    });
  }

  /** Encoding takes seconds for megabytes, which is too much to learn that a text does not fit. */
  #checkLength({ mostBytesPerToken }: Tokenizer, text: string, room: number): void {
    const bytes = Buffer.byteLength(text);
    const least = Math.ceil(bytes / mostBytesPerToken) + 1;
    if (least <= room) return;
    const message = `the prompt has ${bytes} bytes, ${least - 1} tokens or more; there is room for ${room}, output included`;
    throw new ContextLengthError("prompt", message, least, room);
  }

  /** Token sequences of each bad word, at the start of a text and after a space. Needs a tokenizer. */
  badWordTokens(badWords: readonly string[]): readonly (readonly number[])[] {
    const sequences: number[][] = [];
    for (const word of badWords) {
      const bare = this.tokenizer!.encode(word.trimStart(), { addSpecialTokens: false });
      const spaced = this.tokenizer!.encode(` ${word.trimStart()}`, { addSpecialTokens: false });
      sequences.push(bare);
      if (spaced.join() !== bare.join()) sequences.push(spaced);
    }
    const entries = sequences.reduce((sum, tokens) => sum + tokens.length + 1, 1);
    if (entries > MAX_BAD_WORD_TOKENS) {
      const message = `badWords come to ${entries} tokens, at most ${MAX_BAD_WORD_TOKENS} are allowed`;
      throw new InvalidRequestError("badWords", message);
    }
    return sequences;
  }
}
