import type { TurnDelta } from "./format.ts";
import type { TokenPieces } from "./token-pieces.ts";
import type { TurnParser } from "./turn-parser.ts";

export interface TurnReaderOptions {
  readonly parser: TurnParser;
  readonly pieces: TokenPieces;
  /** Markers that are tokens of their own, by id. */
  readonly markers: ReadonlyMap<number, string>;
  /** True for tokens that are neither marker nor text. */
  readonly isHidden: (id: number) => boolean;
}

/** Reads the turn of a completion from its text and tokens, as they come. */
export class TurnReader {
  /** Tokens of thoughts so far, without the markers around them. */
  reasoningTokens = 0;

  constructor(private readonly options: TurnReaderOptions) {}

  get hasCalls(): boolean {
    return this.options.parser.hasCalls;
  }

  /** Takes new text and tokens; returns what they bring that is certain. */
  push(text: string, tokenIds: readonly number[]): TurnDelta {
    const { parser, pieces, markers, isHidden } = this.options;
    for (const piece of pieces.push(text, tokenIds)) {
      const wasReasoning = parser.isReasoning;
      const marker = markers.get(piece.id);
      if (marker !== undefined) parser.pushMarker(marker);
      else if (!isHidden(piece.id)) parser.push(piece.text);
      if (wasReasoning && parser.isReasoning) this.reasoningTokens++;
    }
    return parser.take();
  }

  /** Ends the turn. @param isWhole the model has ended it, not a limit. */
  finish(isWhole: boolean): TurnDelta {
    const { parser, pieces } = this.options;
    parser.push(pieces.rest);
    parser.finish(isWhole);
    return parser.take();
  }
}
