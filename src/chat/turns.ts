import type { AsyncLLM } from "../async/async-llm.ts";
import { ModelTurns } from "../formats/model-turns.ts";
import { type FormatOptions, formatsOf, type ModelFormats } from "../formats/registry.ts";

/** The forms in which a model thinks and calls tools. */
export class Turns {
  readonly formats: ModelFormats;
  #bound: Promise<ModelTurns> | undefined;

  /** @throws ConfigError for parsers that do not go together. */
  constructor(
    private readonly llm: Pick<AsyncLLM, "chatTemplate" | "tokenTable">,
    options: FormatOptions,
  ) {
    this.formats = formatsOf(options, llm.chatTemplate);
  }

  /** With the model's tokens, which are looked at when they are first needed. */
  bind(): Promise<ModelTurns> {
    this.#bound ??= this.llm.tokenTable().then((tokens) => new ModelTurns(this.formats, tokens));
    this.#bound.catch(() => {
      this.#bound = undefined;
    });
    return this.#bound;
  }

  /** True if the chat template mentions one of these variables. */
  templateKnows(...variables: readonly string[]): boolean {
    const template = this.llm.chatTemplate ?? "";
    return variables.some((name) => new RegExp(`\\b${name}\\b`).test(template));
  }
}
