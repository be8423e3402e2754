import type { TurnReader } from "../formats/turn-reader.ts";
import { Turn, type TurnText } from "./turn.ts";

/** A part of a turn: thoughts, text, or a call. */
export interface TurnPart {
  /** Place among the parts of the turn, from 0. */
  readonly index: number;
  readonly kind: "thoughts" | "text" | "call";
  /** What is thought or said so far; of a call, the JSON text of its arguments. */
  readonly text: string;
  /** Of a call. */
  readonly callId: string;
  readonly name: string;
  /** No text follows. */
  readonly isDone: boolean;
}

/** A step in the making of a part: it begins, has more text, or is done. */
export interface PartStep {
  readonly step: "begin" | "text" | "end";
  readonly part: TurnPart;
  /** The new text; empty unless the step is "text". */
  readonly text: string;
}

type Draft = { -readonly [Field in keyof TurnPart]: TurnPart[Field] };

/** The turn of one completion as a list of parts, one after the other: at most the last is unfinished. */
export class TurnParts {
  /** Tokens so far. */
  outputTokens = 0;
  readonly #turn: Turn;
  readonly #parts: Draft[] = [];

  /** @param reader undefined: all text is said. */
  constructor(reader: TurnReader | undefined) {
    this.#turn = new Turn(reader);
  }

  get parts(): readonly TurnPart[] {
    return this.#parts;
  }

  /** As of `Turn`. */
  get finishReason(): string | null {
    return this.#turn.finishReason;
  }

  get reasoningTokens(): number | undefined {
    return this.#turn.reasoningTokens;
  }

  /** Takes what is new; returns the steps that it makes, in order. */
  push(chunk: TurnText): readonly PartStep[] {
    this.outputTokens += chunk.tokenIds.length;
    const steps: PartStep[] = [];
    let call = this.#parts.filter(({ kind }) => kind === "call").length - 1;
    for (const { content, reasoning, calls } of this.#turn.push(chunk)) {
      this.#extend("thoughts", reasoning, steps);
      this.#extend("text", content, steps);
      for (const { index, id = "", name = "", arguments: text } of calls) {
        if (index > call) this.#begin({ kind: "call", callId: id, name }, steps);
        call = index;
        this.#add(text, steps);
      }
    }
    if (this.finishReason !== null) this.#end(steps);
    return steps;
  }

  #extend(kind: "thoughts" | "text", text: string, steps: PartStep[]): void {
    if (text === "") return;
    if (this.#parts.at(-1)?.kind !== kind) this.#begin({ kind, callId: "", name: "" }, steps);
    this.#add(text, steps);
  }

  #begin(of: Pick<TurnPart, "kind" | "callId" | "name">, steps: PartStep[]): void {
    this.#end(steps);
    const part: Draft = { index: this.#parts.length, ...of, text: "", isDone: false };
    this.#parts.push(part);
    steps.push({ step: "begin", part, text: "" });
  }

  #add(text: string, steps: PartStep[]): void {
    if (text === "") return;
    const part = this.#parts.at(-1)!;
    part.text += text;
    steps.push({ step: "text", part, text });
  }

  #end(steps: PartStep[]): void {
    const part = this.#parts.at(-1);
    if (!part || part.isDone) return;
    part.isDone = true;
    steps.push({ step: "end", part, text: "" });
  }
}
