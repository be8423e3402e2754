import type { ServerAccess } from "../server-access.ts";
import { Store } from "../store.ts";
import { Metrics, parseMetrics } from "./metrics-text.ts";

/** `/metrics` at one time. */
export interface Scrape {
  /** Unix time in seconds. */
  readonly time: number;
  readonly metrics: Metrics;
}

/** Scrapes that are kept: half an hour at five seconds. */
const KEPT = 360;
/** Seconds between two. */
const INTERVAL = 5;

/** `/metrics`, read again and again while it is watched. */
export class MetricsFeed {
  /** Oldest first. */
  readonly scrapes = new Store<readonly Scrape[]>([]);
  readonly problem = new Store("");

  constructor(private readonly access: ServerAccess) {}

  /** Reads until the returned function is called; not while the page is hidden. */
  watch(): () => void {
    let isOver = false;
    const read = async () => {
      if (document.visibilityState === "visible") await this.#read();
      if (!isOver) timer = setTimeout(read, INTERVAL * 1000);
    };
    let timer = setTimeout(read, 0);
    return () => {
      isOver = true;
      clearTimeout(timer);
    };
  }

  async #read(): Promise<void> {
    try {
      const text = await (await this.access.fetch("metrics")).text();
      const scrape = { time: Date.now() / 1000, metrics: new Metrics(parseMetrics(text)) };
      this.scrapes.value = [...this.scrapes.value.slice(-KEPT + 1), scrape];
      this.problem.value = "";
    } catch (error) {
      this.problem.value = error instanceof Error ? error.message : String(error);
    }
  }
}
