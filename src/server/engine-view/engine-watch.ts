import type { AsyncLLM } from "../../async/async-llm.ts";
import type { StepReport } from "../../async/engine-client.ts";
import type { EngineView } from "../../base/engine-view.ts";
import type { ServerMetrics } from "../metrics.ts";
import { type DurationSummary, Durations } from "./durations.ts";

/** An engine at one time, and what was measured of its requests since the time before. */
export interface Snapshot {
  /** Seconds since the server started. */
  readonly time: number;
  readonly view: EngineView;
  /** Arrival to first token; null: no request came to that. */
  readonly firstToken: DurationSummary | null;
  /** Between the tokens of streams; null: there were none. */
  readonly interToken: DurationSummary | null;
}

/** Between two snapshots. */
const INTERVAL_MS = 100;
/** Between two of an engine that does nothing. */
const IDLE_INTERVAL_MS = 1000;

/**
 * Snapshots of one engine while somebody watches it; without watchers it asks for nothing, and nothing is measured. All watchers
 * get the same ones. A watcher takes the latest when it is ready for one, so a slow one misses some and none are kept for it.
 */
export class EngineWatch implements Disposable {
  #numWatchers = 0;
  #latest: Snapshot | undefined;
  /** Settled, and replaced, with each snapshot, and when a watcher is to leave. */
  #next = Promise.withResolvers<void>();
  #isRunning = false;
  #isOver = false;

  constructor(
    private readonly llm: AsyncLLM,
    private readonly metrics: ServerMetrics,
    private readonly replica: number,
  ) {}

  /** Snapshots from now on, until the watch or the signal ends. @throws the error that the engine died of. */
  async *snapshots(signal: AbortSignal): AsyncGenerator<Snapshot, void, undefined> {
    // All watchers look whether there is news for them. To race against a promise of its own would add to that promise each time.
    const onAbort = () => this.#renew().resolve();
    signal.addEventListener("abort", onAbort);
    this.#numWatchers++;
    try {
      let seen = this.#latest;
      while (!signal.aborted && !this.#isOver) {
        if (this.#latest === undefined || this.#latest === seen) {
          void this.#run();
          await this.#next.promise;
        } else {
          seen = this.#latest;
          yield seen;
        }
      }
    } finally {
      this.#numWatchers--;
      signal.removeEventListener("abort", onAbort);
    }
  }

  /** Ends all watchers' snapshots. Safe to call twice. */
  [Symbol.dispose](): void {
    this.#isOver = true;
    this.#next.resolve();
  }

  async #run(): Promise<void> {
    if (this.#isRunning) return;
    this.#isRunning = true;
    const firstToken = new Durations();
    const interToken = new Durations();
    const ends = [
      this.llm.onStep((report) => this.#measure(report, firstToken)),
      this.metrics.onInterToken((replica, seconds) => {
        if (replica === this.replica) interToken.add(seconds);
      }),
    ];
    try {
      while (this.#numWatchers > 0 && !this.#isOver) {
        if (this.#isDue()) {
          const view = await this.llm.replicas[this.replica]!.view();
          const time = performance.now() / 1000;
          this.#latest = { time, view, firstToken: firstToken.take(), interToken: interToken.take() };
          this.#renew().resolve();
        }
        await Bun.sleep(INTERVAL_MS);
      }
    } catch (error) {
      const failed = this.#renew();
      failed.promise.catch(() => {});
      failed.reject(error);
    } finally {
      this.#isRunning = false;
      this.#latest = undefined;
      for (const end of ends) end();
    }
  }

  /** @returns what waiters wait for, after making what the next will wait for. */
  #renew(): PromiseWithResolvers<void> {
    const current = this.#next;
    this.#next = Promise.withResolvers();
    return current;
  }

  /** The engine has made a step since the latest snapshot, or that is old. */
  #isDue(): boolean {
    if (!this.#latest) return true;
    const { stats } = this.llm.replicas[this.replica]!;
    const isSame = stats.steps === this.#latest.view.stats.steps && stats.running + stats.waiting === 0;
    return !isSame || performance.now() / 1000 - this.#latest.time >= IDLE_INTERVAL_MS / 1000;
  }

  #measure({ replica, prompts }: StepReport, firstToken: Durations): void {
    if (replica !== this.replica) return;
    for (const { metrics } of prompts) {
      const { firstTokenTime, arrivalTime } = metrics;
      if (firstTokenTime !== undefined) firstToken.add(firstTokenTime - arrivalTime);
    }
  }
}
