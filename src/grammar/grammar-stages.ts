import type { PackedTokens } from "../tokenizer/token-table.ts";
import { GrammarStage, type GrammarStageOptions, type Matcher, type MatcherInit } from "./grammar-stage.ts";
import { RecentTexts } from "./recent-texts.ts";
import { MAX_COMPILED } from "./stage-protocol.ts";

/** Matchers that one stage has before another one is started: their masks take a third of a millisecond, a vocabulary large. */
const MATCHERS_EACH = 4;

/**
 * Several stages, so that the masks of many matchers are made beside each other. A stage is started when the others have their
 * share of matchers; those of one grammar go to the stages that have compiled it, as long as these have no more than others. One
 * that none has compiled goes where nobody has to wait for that, as long as there are stages to start.
 */
export class GrammarStages {
  /** With the grammars that each has compiled. */
  readonly #stages: { readonly stage: GrammarStage; readonly grammars: RecentTexts<true> }[] = [];
  #changed = Promise.withResolvers<void>();

  /** @param limit most stages, each of which has a thread and the vocabulary in memory */
  constructor(
    private readonly tokens: () => PackedTokens,
    private readonly vocabSize: number,
    private readonly limit: number,
    private readonly options: GrammarStageOptions = {},
  ) {}

  /** Matchers that have not been disposed of. */
  get numLive(): number {
    return this.#stages.reduce((sum, { stage }) => sum + stage.numLive, 0);
  }

  get numStages(): number {
    return this.#stages.length;
  }

  /** A matcher at the beginning of a text; it is not ready yet. */
  open(init: MatcherInit): Matcher {
    const { stage, grammars } = this.#choose(init.grammar);
    if (!grammars.get(init.grammar)) grammars.add(init.grammar, true);
    return stage.open(init);
  }

  /** Sends the tokens that matchers have been told of since the last time. */
  flush(): void {
    for (const { stage } of this.#stages) stage.flush();
  }

  /** Waits for masks as each of the stages does, all of them together no longer than one. */
  settle(isIdle: boolean): void {
    const now = performance.now();
    for (const { stage } of this.#stages) stage.settle(isIdle, now);
  }

  /** Resolves when some matcher may have been answered. */
  changed(): Promise<void> {
    const { promise } = this.#changed;
    for (const { stage } of this.#stages) void stage.changed();
    return promise;
  }

  /** Ends all stages. Safe to call twice. */
  dispose(): void {
    for (const { stage } of this.#stages.splice(0)) stage.dispose();
    this.#ring();
  }

  #choose(grammar: string) {
    const byLoad = this.#stages.toSorted((a, b) => a.stage.numLive - b.stage.numLive);
    const [least] = byLoad;
    const knowing = byLoad.find(({ grammars }) => grammars.has(grammar));
    if (knowing && knowing.stage.numLive < MATCHERS_EACH) return knowing;
    if (least && least.stage.numLive < (knowing ? MATCHERS_EACH : 1)) return least;
    if (this.#stages.length < this.limit) return this.#start();
    return knowing && knowing.stage.numLive === least!.stage.numLive ? knowing : least!;
  }

  #start() {
    const stage = new GrammarStage(this.tokens, this.vocabSize, {
      ...this.options,
      onChange: () => this.#ring(),
    });
    const started = { stage, grammars: new RecentTexts<true>(MAX_COMPILED) };
    this.#stages.push(started);
    return started;
  }

  #ring(): void {
    this.#changed.resolve();
    this.#changed = Promise.withResolvers();
  }
}
