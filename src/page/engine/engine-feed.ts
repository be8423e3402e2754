import { type ServerAccess, ServerError } from "../server-access.ts";
import { serverEvents } from "../server-events.ts";
import { Store } from "../store.ts";
import { EngineHistory } from "./engine-history.ts";
import { type EngineFacts, type EngineState, stateOf, type ViewEvent } from "./engine-state.ts";
import { EventLog } from "./event-log.ts";

export type FeedStatus = "off" | "connecting" | "live" | "lost";

/** Seconds until a lost connection is tried again: first, and at most. */
const RETRY_SECONDS = { first: 0.5, most: 10 };

/** One of the server's engines, live while it is watched. */
export class EngineFeed {
  readonly status = new Store<FeedStatus>("off");
  readonly state = new Store<EngineState | undefined>(undefined);
  /** Why there is no connection. */
  readonly problem = new Store("");
  history = new EngineHistory();
  events = new EventLog();
  #replica = 0;
  #watchers = 0;
  #connection = new AbortController();
  readonly #onVisibility = () => this.#update();

  constructor(private readonly access: ServerAccess) {}

  /** Keeps the feed live until the returned function is called. A hidden page gets nothing. */
  watch(): () => void {
    if (this.#watchers++ === 0) {
      document.addEventListener("visibilitychange", this.#onVisibility);
      this.#update();
    }
    return () => {
      if (--this.#watchers > 0) return;
      document.removeEventListener("visibilitychange", this.#onVisibility);
      this.#update();
    };
  }

  choose(replica: number): void {
    this.#replica = replica;
    this.state.value = undefined;
    this.#connection.abort();
    this.status.value = "off";
    this.#update();
  }

  #update(): void {
    const isWanted = this.#watchers > 0 && document.visibilityState === "visible";
    if (!isWanted) {
      this.#connection.abort();
      this.status.value = "off";
    } else if (this.status.value === "off") {
      this.#connection = new AbortController();
      void this.#run(this.#connection.signal);
    }
  }

  async #run(signal: AbortSignal): Promise<void> {
    this.status.value = "connecting";
    for (
      let seconds = RETRY_SECONDS.first;
      !signal.aborted;
      seconds = Math.min(2 * seconds, RETRY_SECONDS.most)
    ) {
      try {
        await this.#read(signal, () => {
          seconds = RETRY_SECONDS.first;
        });
      } catch (error) {
        if (signal.aborted) return;
        this.problem.value = error instanceof Error ? error.message : String(error);
        // Without a key there is no use in asking again.
        if (error instanceof ServerError && error.status === 401) {
          this.status.value = "lost";
          return;
        }
      }
      if (signal.aborted) return;
      this.status.value = "lost";
      await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
    }
  }

  async #read(signal: AbortSignal, onLive: () => void): Promise<void> {
    const reply = await this.access.fetch(`engine?replica=${this.#replica}`, { signal });
    let facts: EngineFacts | undefined;
    let blocks = new Uint32Array(0);
    // Counters may have begun anew.
    this.history = new EngineHistory();
    this.events = new EventLog();
    for await (const { type, data } of serverEvents(reply)) {
      if (signal.aborted) return;
      if (type === "engine") {
        facts = JSON.parse(data) as EngineFacts;
        blocks = new Uint32Array(facts.numBlocks);
      } else if (type === "view" && facts) {
        const state = stateOf(JSON.parse(data) as ViewEvent, facts, blocks);
        this.history.add(state);
        this.events.add(state);
        this.status.value = "live";
        this.state.value = state;
        onLive();
      } else if (type === "message") {
        const { error } = JSON.parse(data) as { readonly error?: { readonly message: string } };
        throw new ServerError(error?.message ?? "The connection was lost", 503);
      }
    }
    throw new ServerError("The connection was lost", 0);
  }
}
