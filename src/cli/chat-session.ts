import type { AsyncLLM, TurnLimit } from "../async/async-llm.ts";
import type { SamplingParams } from "../base/sampling-params.ts";
import { ModelTurns } from "../formats/model-turns.ts";
import { formatsOf } from "../formats/registry.ts";
import type { TurnReader } from "../formats/turn-reader.ts";
import type { ChatPrompt } from "../tokenizer/prompt-encoder.ts";

/** Tokens kept free for a reply of which no length was asked for, unless a quarter of the context is less. */
const ROOM_FOR_REPLY = 256;

type Message = { readonly role: "system" | "user" | "assistant"; readonly content: string };

/** New parts of a reply. */
export interface ReplyDelta {
  readonly thought: string;
  readonly text: string;
  /** Tokens that they are of. */
  readonly tokens: number;
}

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
  #turns: Promise<ModelTurns> | undefined;

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
   * Streams the answer to `text`, and thoughts ahead of it. Question and answer join the history when the answer ends or
   * `signal` cuts it short, without the thoughts; a failed exchange leaves no trace.
   * @throws ContextLengthError when `text` alone does not fit the context; otherwise as `AsyncLLM.submit`.
   */
  async *reply(text: string, signal: AbortSignal): AsyncGenerator<ReplyDelta, void, undefined> {
    const question: Message = { role: "user", content: text };
    await this.#trim(question);
    const prompt = this.#prompt(question);
    let content = "";
    for await (const delta of this.#stream(prompt, signal)) {
      content += delta.text;
      yield delta;
    }
    this.#history.push(question, { role: "assistant", content });
  }

  async *#stream(prompt: ChatPrompt, signal: AbortSignal): AsyncGenerator<ReplyDelta, void, undefined> {
    const { sampling } = this.options;
    const turns = await this.#modelTurns();
    let reader: TurnReader | undefined;
    const { structuredOutputs, ...unlimited } = sampling;
    const limitTurn = (rendered: string): TurnLimit => {
      const beginning = { prompt: rendered, continued: undefined };
      reader = turns!.open(beginning, { tools: undefined, firstCallOnly: false, skipsSpecial: true });
      if (!structuredOutputs) return {};
      const limits = { tools: [], mustCall: false, oneCallOnly: false, sampling: { structuredOutputs } };
      const shape = turns!.shape(beginning, limits);
      return { text: { shape, markers: turns!.markers, param: "structuredOutputs" } };
    };
    const deltas = turns
      ? this.llm.stream(prompt, turns.sampling(unlimited), { signal, limitTurn })
      : this.llm.stream(prompt, sampling, { signal });
    for await (const { error, text, tokenIds, finishReason } of deltas) {
      if (error) throw error;
      const tokens = tokenIds.length;
      const read = reader?.push(text, tokenIds);
      yield read ? { thought: read.reasoning, text: read.content, tokens } : { thought: "", text, tokens };
      if (finishReason === null || !reader) continue;
      const { reasoning, content } = reader.finish(finishReason === "stop");
      yield { thought: reasoning, text: content, tokens: 0 };
    }
  }

  /** The reading of the model's turns; undefined if it does not think. */
  async #modelTurns(): Promise<ModelTurns | undefined> {
    const formats = formatsOf({ toolCallParser: "none", reasoningParser: "auto" }, this.llm.chatTemplate);
    if (!formats.reasoning) return undefined;
    this.#turns ??= this.llm.tokenTable().then((tokens) => new ModelTurns(formats, tokens));
    return this.#turns;
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
