import { randomBytes } from "node:crypto";
import type { SamplingParams } from "../base/sampling-params.ts";
import type { TokenTable } from "../tokenizer/token-table.ts";
import { markersOf, type ToolFormat, type ToolSpec } from "./format.ts";
import type { ModelFormats } from "./registry.ts";
import { TokenPieces } from "./token-pieces.ts";
import { TurnParser } from "./turn-parser.ts";
import { TurnReader } from "./turn-reader.ts";

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
