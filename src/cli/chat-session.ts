import type { AsyncLLM } from "../async/async-llm.ts";
import type { CompletionDelta } from "../base/outputs.ts";
import type { SamplingParams } from "../base/sampling-params.ts";

/** Tokens kept free for a reply of which no length was asked for, unless a quarter of the context is less. */
const ROOM_FOR_REPLY = 256;

type Message = { readonly role: "system" | "user" | "assistant"; readonly content: string };

export interface ChatSessionOptions {
  readonly system?: string | undefined;
  /** As for `LLM.generate`; without `maxTokens` a reply may fill the context. */
  readonly sampling: SamplingParams;
  /** Variables of the chat template. */
  readonly chatTemplateKwargs?: Readonly<Record<string, unknown>> | undefined;
  /** Told how many old messages no longer fit the context and were dropped. */
  readonly onTrim: (messages: number) => void;
}

/** A conversation with a model: system message, history, and the next reply. */
export class ChatSession {
  /** Undefined or empty: none. In force from the next reply on. */
  system: string | undefined;
  #history: Message[] = [];

  constructor(
    private readonly llm: AsyncLLM,
    private readonly options: ChatSessionOptions,
  ) {
    this.system = options.system;
  }

  /** Forgets the history; the system message stays. */
  reset(): void {
    this.#history = [];
  }

  /**
   * Streams the answer to `text`. Both join the history when the answer ends or `signal` cuts it short; a failed exchange
   * leaves no trace.
   * @throws ContextLengthError when `text` alone does not fit the context; otherwise as `AsyncLLM.submit`.
   */
  async *reply(text: string, signal: AbortSignal): AsyncGenerator<CompletionDelta, void, undefined> {
    const question: Message = { role: "user", content: text };
    await this.#trim(question);
    const prompt = this.#prompt(question);
    let content = "";
    for await (const delta of this.llm.stream(prompt, this.options.sampling, { signal })) {
      if (delta.error) throw delta.error;
      content += delta.text;
      yield delta;
    }
    this.#history.push(question, { role: "assistant", content });
  }

  /** Drops the oldest exchanges until the prompt leaves room for the reply. */
  async #trim(question: Message): Promise<void> {
    const { maxModelLen } = this.llm;
    const room = this.options.sampling.maxTokens ?? Math.min(ROOM_FOR_REPLY, Math.floor(maxModelLen / 4));
    let dropped = 0;
    while (this.#history.length > 0) {
      const { tokenIds } = await this.llm.tokenize(this.#prompt(question));
      if (tokenIds.length + room <= maxModelLen) break;
      dropped += this.#history.splice(0, 2).length;
    }
    if (dropped > 0) this.options.onTrim(dropped);
  }

  #prompt(question: Message) {
    const { system } = this;
    const { chatTemplateKwargs } = this.options;
    const instructions: readonly Message[] = system ? [{ role: "system", content: system }] : [];
    return {
      messages: [...instructions, ...this.#history, question],
      ...(chatTemplateKwargs && { chat: { chatTemplateKwargs } }),
    };
  }
}
