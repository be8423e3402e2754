import type { MatcherSource, TokenMatcher } from "../../src/engine/token-matcher.ts";
import type { Random } from "./random.ts";

/** A matcher that answers sooner or later, allows everything, and is slow or fails as chance has it. */
class SimMatcher implements TokenMatcher {
  isPending = true;
  isSlow = true;
  readonly isComplete = false;
  error: Error | undefined;
  readonly mask = Uint32Array.of(2 ** 32 - 1);
  readonly maskVersion = 0;
  isDisposed = false;
  numAccepted = 0;

  accept(): void {
    if (this.isPending || this.isDisposed) throw new Error("a token came before it could");
    this.isPending = true;
    this.numAccepted++;
  }

  dispose(): void {
    this.isDisposed = true;
  }
}

/** Matchers whose answers come at random: between steps and, but for some that are late, when a step waits. */
export class SimMatchers implements MatcherSource {
  readonly all: SimMatcher[] = [];
  /** Masks that a step waited for in vain. */
  numLate = 0;
  #changed = Promise.withResolvers<void>();

  constructor(private readonly random: Random) {}

  get numLive(): number {
    return this.all.filter(({ isDisposed }) => !isDisposed).length;
  }

  open(): TokenMatcher {
    const matcher = new SimMatcher();
    this.all.push(matcher);
    return matcher;
  }

  flush(): void {}

  settle(): void {
    for (const matcher of this.all) {
      if (matcher.isSlow || !matcher.isPending) continue;
      if (this.random.chance(10)) matcher.isSlow = true;
      else this.#answer(matcher);
      if (matcher.isPending && !matcher.isDisposed) this.numLate++;
    }
  }

  changed(): Promise<void> {
    return this.#changed.promise;
  }

  /** Time passes. @param all every answer comes. */
  pass(all: boolean): void {
    for (const matcher of this.all) if (all || this.random.chance(60)) this.#answer(matcher);
    this.#changed.resolve();
    this.#changed = Promise.withResolvers();
  }

  #answer(matcher: SimMatcher): void {
    if (!matcher.isPending) return;
    matcher.isPending = false;
    matcher.isSlow = this.random.chance(20);
  }
}
