import { randomBytes } from "node:crypto";
import type { SamplingParams } from "../base/sampling-params.ts";
import { type ResolvedOutputs, structuredOutputs } from "../base/structured-outputs.ts";
import { plainOutputs } from "../grammar/grammar-source.ts";
import type { TextShape } from "../grammar/text-shape.ts";
import type { TokenTable } from "../tokenizer/token-table.ts";
import { markersOf, type ToolFormat, type ToolSpec } from "./format.ts";
import { harmonyShape } from "./harmony.ts";
import type { ModelFormats } from "./registry.ts";
import { type ThinkingState, thinkingShape } from "./thinking.ts";
import { TokenPieces } from "./token-pieces.ts";
import { TurnParser } from "./turn-parser.ts";
import { TurnReader } from "./turn-reader.ts";
import { bodyShape, type Mark, type TurnDemands } from "./written-turn.ts";

const ID_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

export interface TurnOptions {
  /** Tools that may be called; undefined: what looks like a call is text. */
  readonly tools: readonly ToolSpec[] | undefined;
  /** Deliver the first call only. */
  readonly firstCallOnly: boolean;
  /** Leave special tokens out that mean nothing, as `skipSpecialTokens` does. */
  readonly skipsSpecial: boolean;
}

/** The beginning of a turn. */
export interface TurnBeginning {
  /** The rendered conversation. */
  readonly prompt: string;
  /** The text of the message that the model continues; undefined: it begins one. */
  readonly continued: string | undefined;
}

/** Demands on a turn that its text is held to. */
export interface TurnLimits extends Omit<TurnDemands, "answer"> {
  /** Parameters that ask for a grammar of what is said. */
  readonly sampling: Pick<SamplingParams, "structuredOutputs" | "responseFormat">;
}

/** Tokens that a model may think for, in the terms of the engine. */
export interface ThinkingTokens {
  /** The tokens that begin thoughts, one after the other, and the one that ends them. */
  readonly open: readonly number[];
  readonly close: number;
  /** The turn begins with thoughts. */
  readonly isInside: boolean;
}

/** Reads the turns of a model, in the forms and with the tokens that it has. */
export class ModelTurns {
  /** The markers that are tokens, by id and by text. */
  readonly #byId = new Map<number, string>();
  readonly #tokenMarkers: ReadonlySet<string>;
  readonly #stops: readonly number[];
  readonly #hasSpecialMarkers: boolean;

  constructor(
    private readonly formats: ModelFormats,
    private readonly tokens: TokenTable,
  ) {
    for (const format of [formats.withCalls, formats.withoutCalls])
      for (const marker of format ? markersOf(format) : []) {
        const id = tokens.findAdded(marker);
        if (id !== undefined) this.#byId.set(id, marker);
      }
    this.#tokenMarkers = new Set(this.#byId.values());
    this.#hasSpecialMarkers = [...this.#byId.keys()].some((id) => tokens.isSpecial(id));
    this.#stops = formats.stops.flatMap((text) => tokens.findAdded(text) ?? []);
  }

  /** The parameters with which the model's text has all markers, and ends where its turn does. */
  sampling(sampling: SamplingParams): SamplingParams {
    const { stopTokenIds = [], ignoreEos = false } = sampling;
    return {
      ...sampling,
      ...(this.#hasSpecialMarkers && { skipSpecialTokens: false }),
      // A list that is none is the engine's to refuse.
      ...(this.#stops.length > 0 &&
        !ignoreEos &&
        Array.isArray(stopTokenIds) && { stopTokenIds: [...stopTokenIds, ...this.#stops] }),
    };
  }

  /** The tokens that are markers. */
  get markers(): readonly number[] {
    return [...this.#byId.keys()];
  }

  /** The shape that a turn is held to. */
  shape(beginning: TurnBeginning, { sampling, ...demands }: TurnLimits): TextShape {
    const outputs = structuredOutputs(sampling.structuredOutputs, sampling.responseFormat);
    return this.#shape(beginning, {
      ...demands,
      answer: outputs && { kind: "outputs", outputs: plainOutputs(outputs) },
    });
  }

  /** The shape of a turn without calls, whose answer has a form. @param outputs plain */
  answerShape(beginning: TurnBeginning, outputs: ResolvedOutputs): TextShape {
    const demands = { tools: [], mustCall: false, oneCallOnly: false };
    return this.#shape(beginning, { ...demands, answer: { kind: "outputs", outputs } });
  }

  #shape({ prompt, continued }: TurnBeginning, demands: TurnDemands): TextShape {
    const { withCalls, reasoning, begun } = this.formats;
    const start = begun(prompt, continued);
    const mark: Mark = (marker) => {
      const id = this.tokens.findAdded(marker);
      return id === undefined ? { kind: "text", text: marker } : { kind: "token", id };
    };
    if (reasoning === "harmony") return harmonyShape(demands, mark, start);
    const calls = demands.tools.length > 0 ? withCalls?.written?.(mark) : undefined;
    const body = bodyShape(calls, demands, mark);
    if (!reasoning) return body;
    return thinkingShape(body, reasoning, this.#thinkingState(start, continued), mark, calls?.markers ?? []);
  }

  /** The tokens around thoughts; undefined if they are none, or the model does not think. */
  thinking({ prompt, continued }: TurnBeginning): ThinkingTokens | undefined {
    const { reasoning, begun } = this.formats;
    if (!reasoning) return undefined;
    const isHarmony = reasoning === "harmony";
    const opening = isHarmony
      ? ["<|channel|>", "analysis", "<|message|>"]
      : [reasoning.open, ...(reasoning.header === undefined ? [] : [reasoning.header, "\n"])];
    const open = opening.flatMap((text) => this.tokens.find(text) ?? []);
    const close = this.tokens.findAdded(isHarmony ? "<|end|>" : reasoning.close);
    if (close === undefined || open.length < opening.length) return undefined;
    return { open, close, isInside: this.#thinkingState(begun(prompt, continued), continued) === "inside" };
  }

  #thinkingState(begun: string, continued: string | undefined): ThinkingState {
    if (
      new TurnParser(this.formats.withoutCalls, { newId: () => "", firstCallOnly: false }, begun).isReasoning
    )
      return "inside";
    return begun !== "" || continued !== undefined ? "past" : "before";
  }

  /** A reader of one turn. */
  open({ prompt, continued }: TurnBeginning, options: TurnOptions): TurnReader {
    const { tools, firstCallOnly, skipsSpecial } = options;
    const format = (tools && this.formats.withCalls) ?? this.formats.withoutCalls;
    const parser = new TurnParser(
      format,
      {
        ...(tools && { tools }),
        tokenMarkers: this.#tokenMarkers,
        firstCallOnly,
        newId: () => newId(format),
      },
      this.formats.begun(prompt, continued),
    );
    const textSkips = skipsSpecial && !this.#hasSpecialMarkers;
    return new TurnReader({
      parser,
      pieces: new TokenPieces(this.tokens, textSkips),
      markers: this.#byId,
      isHidden: (id) => skipsSpecial && this.tokens.isSpecial(id),
    });
  }
}

function newId({ ids }: ToolFormat): string {
  const [prefix, length] = ids === "short" ? ["", 9] : ["call_", 24];
  // 62 letters do not divide 256, but ids need only be distinct.
  return prefix + Array.from(randomBytes(length), (byte) => ID_LETTERS[byte % ID_LETTERS.length]).join("");
}
