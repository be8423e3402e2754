import type { EngineState } from "./engine-state.ts";

/** The series of an engine; `null` where nothing was measured. */
export const SERIES = [
  "generated",
  "prefilled",
  "running",
  "waiting",
  "kvUsage",
  "hitRate",
  "firstToken50",
  "firstToken99",
  "interToken50",
  "interToken99",
] as const;
export type SeriesName = (typeof SERIES)[number];

/** Seconds that are kept. */
const KEPT = 120;
/** Seconds over which rates are taken: steps come in bursts. */
const RATE_WINDOW = 1;
/** Seconds over which the share of cache hits is taken. */
const HIT_WINDOW = 30;

type Point = Readonly<Record<SeriesName, number | null>>;

/** The last two minutes of an engine, as uPlot takes them: the times, and a list of values for each series. */
export class EngineHistory {
  readonly times: number[] = [];
  readonly values: Readonly<Record<SeriesName, (number | null)[]>>;
  readonly #states: EngineState[] = [];

  constructor() {
    this.values = Object.fromEntries(SERIES.map((name) => [name, []])) as never;
  }

  get latest(): Point | undefined {
    if (this.times.length === 0) return undefined;
    return Object.fromEntries(SERIES.map((name) => [name, this.values[name].at(-1)!])) as never;
  }

  /** The latest value that was measured. */
  last(name: SeriesName): number | undefined {
    return this.values[name].findLast((value) => value !== null) ?? undefined;
  }

  add(state: EngineState): void {
    this.#states.push(state);
    this.times.push(state.time);
    const point = this.#pointOf(state);
    for (const name of SERIES) this.values[name].push(point[name]);
    while (this.times[0]! < state.time - KEPT) {
      this.times.shift();
      this.#states.shift();
      for (const name of SERIES) this.values[name].shift();
    }
  }

  #pointOf({ time, stats, firstToken, interToken }: EngineState): Point {
    const before = this.#before(time - RATE_WINDOW);
    const seconds = time - before.time;
    const rate = (name: "generationTokens" | "promptTokens") =>
      seconds === 0 ? null : (stats[name] - before.stats[name]) / seconds;
    const long = this.#before(time - HIT_WINDOW);
    const queries = stats.prefixQueries - long.stats.prefixQueries;
    const hits = stats.prefixHits - long.stats.prefixHits;
    const ms = (value: number | undefined) => (value === undefined ? null : 1000 * value);
    return {
      generated: rate("generationTokens"),
      prefilled: rate("promptTokens"),
      running: stats.running,
      waiting: stats.waiting,
      kvUsage: 100 * stats.kvUsage,
      hitRate: queries > 0 ? (100 * hits) / queries : null,
      firstToken50: ms(firstToken?.p50),
      firstToken99: ms(firstToken?.p99),
      interToken50: ms(interToken?.p50),
      interToken99: ms(interToken?.p99),
    };
  }

  /** The latest state of that time or before, or the first. */
  #before(time: number): EngineState {
    return this.#states.findLast((state) => state.time <= time) ?? this.#states[0]!;
  }
}
