import type { ResolvedOutputs } from "../base/structured-outputs.ts";
import { ModelTurns } from "../formats/model-turns.ts";
import { formatsOf, type ModelFormats } from "../formats/registry.ts";
import type { TextShape } from "../grammar/text-shape.ts";
import { type ChatPrompt, finalText, isChat, type Prompt } from "../tokenizer/prompt-encoder.ts";
import type { TokenTable } from "../tokenizer/token-table.ts";

/** The text of a turn. */
export interface TurnText {
  readonly shape: TextShape;
  /** Tokens that mean something as such, and are no text. */
  readonly markers: readonly number[];
  /** The parameter that errors name. */
  readonly param: string;
}

/** Answers to conversations, which a grammar holds from where the model's thoughts end, as its chat template has them. */
export class AnswerLimits {
  readonly #formats: ModelFormats;
  #turns: ModelTurns | undefined;

  constructor(chatTemplate: string | undefined) {
    this.#formats = formatsOf({ toolCallParser: "none", reasoningParser: "auto" }, chatTemplate);
  }

  /** True if the model may think before it answers the prompt. Turns in channels are held from the first token on. */
  thinksBefore(prompt: Prompt | ChatPrompt): prompt is ChatPrompt {
    const { reasoning } = this.#formats;
    return isChat(prompt) && reasoning !== undefined && typeof reasoning !== "string";
  }

  /** @param text the rendered conversation */
  of(prompt: ChatPrompt, text: string, outputs: ResolvedOutputs, tokens: TokenTable): TurnText {
    this.#turns ??= new ModelTurns(this.#formats, tokens);
    const continued = prompt.chat?.continueFinalMessage ? finalText(prompt) : undefined;
    return {
      shape: this.#turns.answerShape({ prompt: text, continued }, outputs),
      ...{ markers: this.#turns.markers, param: outputs.param },
    };
  }
}
