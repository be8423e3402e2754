import type { CompletionDelta } from "../base/outputs.ts";
import type { TurnDelta } from "../formats/format.ts";
import type { TurnReader } from "../formats/turn-reader.ts";

/** New text and tokens of a completion, as far as a turn is made of them. */
export type TurnText = Pick<CompletionDelta, "text" | "tokenIds" | "finishReason" | "stopReason">;

/** The turn of one completion, read as its text comes. */
export class Turn {
  /** The reason that it ended, "tool_calls" if the model ended it with calls; null while it has not. */
  finishReason: string | null = null;

  /** @param reader undefined: all text is said. */
  constructor(private readonly reader: TurnReader | undefined) {}

  /** False: all text is said. */
  get isRead(): boolean {
    return this.reader !== undefined;
  }

  /** Tokens of thoughts so far; undefined: there are none to be told apart. */
  get reasoningTokens(): number | undefined {
    return this.reader?.reasoningTokens;
  }

  /** Takes what is new; returns what it brings that is certain, in order. */
  push({ text, tokenIds, finishReason, stopReason }: TurnText): readonly TurnDelta[] {
    const { reader } = this;
    const deltas = [reader?.push(text, tokenIds) ?? { content: text, reasoning: "", calls: [] }];
    if (finishReason === null) return deltas;
    // A stop string may have cut a call in two.
    const isWhole = finishReason === "stop" && typeof stopReason !== "string";
    if (reader) deltas.push(reader.finish(isWhole));
    this.finishReason = isWhole && reader?.hasCalls ? "tool_calls" : finishReason;
    return deltas;
  }
}
