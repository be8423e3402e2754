import { invariant } from "../base/errors.ts";
import { tokenMask } from "../base/token-mask.ts";
import type { RowMask } from "../runner/types.ts";
import type { EngineRequest } from "./request.ts";
import type { Sequence } from "./sequence.ts";
import type { ScheduledStep } from "./step-builder.ts";
import { ThinkingMatcher } from "./thinking-matcher.ts";
import type { MatcherSource, TokenMatcher } from "./token-matcher.ts";

/** The unfinished sequences whose tokens a matcher limits. */
export class MatchedSequences {
  readonly #sequences = new Set<Sequence>();
  readonly #nothing: Uint32Array;

  constructor(
    private readonly source: MatcherSource | undefined,
    private readonly eosTokenIds: Iterable<number>,
    private readonly vocabSize: number,
  ) {
    this.#nothing = tokenMask(vocabSize, []);
  }

  /** A matcher for a completion of the request; undefined if nothing limits its tokens. */
  open({ grammar, markers, thinking, sampling }: EngineRequest): TokenMatcher | undefined {
    const { stopTokenIds, ignoreEos, allowedTokenIds } = sampling;
    let matcher: TokenMatcher | undefined;
    if (grammar !== undefined) {
      invariant(this.source, "there is nothing that follows grammars");
      const ends = ignoreEos ? stopTokenIds : [...this.eosTokenIds, ...stopTokenIds];
      matcher = this.source.open({ grammar, markers, stopTokenIds: [...new Set(ends)], allowedTokenIds });
    }
    if (!thinking) return matcher;
    return new ThinkingMatcher(thinking, matcher, tokenMask(this.vocabSize, allowedTokenIds));
  }

  /** Takes in a sequence, if it has a matcher. */
  add(sequence: Sequence): void {
    if (sequence.matcher) this.#sequences.add(sequence);
  }

  /** A sequence has finished. */
  remove(sequence: Sequence): void {
    this.#sequences.delete(sequence);
    sequence.matcher?.dispose();
  }

  /** Some sequence has no row for as long as its mask has not come. */
  get awaitMasks(): boolean {
    return this.#sequences.values().some(({ awaitsMask }) => awaitsMask);
  }

  /** Sequences whose text is complete without a stop token, or whose matcher has failed. */
  ended(): readonly Sequence[] {
    return [...this.#sequences].filter(
      ({ matcher }) => matcher!.error !== undefined || (!matcher!.isPending && matcher!.isComplete),
    );
  }

  /** Asks for the masks that follow the tokens that have been collected. */
  ask(): void {
    this.source?.flush();
  }

  /** Waits for the masks of matchers that nobody has to wait long for. */
  settle(isIdle: boolean): void {
    this.source?.settle(isIdle);
  }

  /** Resolves when some matcher may have been answered. */
  async changed(): Promise<void> {
    await this.source?.changed();
  }

  /** The masks of a step's rows, of those whose sequences are unfinished. Where it has not come, the row is held: it draws nothing. */
  masksOf({ batch, sequences }: ScheduledStep): readonly RowMask[] {
    return batch.rows.flatMap(({ masked }, row) => {
      const sequence = sequences[row]!;
      if (!masked || sequence.status === "finished") return [];
      const { isPending, mask, maskVersion } = sequence.matcher!;
      sequence.isHeld = isPending;
      return [isPending ? { row, mask: this.#nothing, version: 0 } : { row, mask, version: maskVersion }];
    });
  }
}
