import { DeviceError } from "../../base/errors.ts";
import type { Context } from "../../cuda/context.ts";
import { Graph } from "../../cuda/graph.ts";
import { Event, type Stream } from "../../cuda/stream.ts";

/** Timed replays of a candidate; the fastest counts. */
const REPLAYS = 3;
/** The least multiple of the L2 cache that a timing cycles through, where the model has the weights for it. */
const L2_MULTIPLE = 3;

/** Of candidates within this of the fastest, the one ranked first is taken: two starts that time a little differently agree. */
const TOLERANCE = 1.03;

/**
 * Times products as a real step runs them: in a captured graph, one after another, over so many weights that each is read
 * from memory.
 */
export class ColdTimer {
  constructor(
    private readonly context: Context,
    private readonly stream: Stream,
  ) {}

  /** As many of `weights` as a timing cycles through, of products that touch this many bytes each. */
  cold<T>(weights: readonly T[], productBytes: number): readonly T[] {
    const wanted = Math.ceil((L2_MULTIPLE * this.context.device.l2CacheSize) / productBytes);
    return weights.slice(0, Math.max(1, wanted));
  }

  /** Milliseconds of what `enqueue` puts on the stream; Infinity where the device refuses it, but goes on. */
  time(enqueue: () => void): number {
    return attempt(() => this.#replayTime(enqueue)) ?? Infinity;
  }

  #replayTime(enqueue: () => void): number {
    using start = Event.create(this.context, { timing: true });
    using end = Event.create(this.context, { timing: true });
    using graph = Graph.capture(this.stream, enqueue);
    using replay = graph.instantiate();
    let best = Infinity;
    for (let i = 0; i <= REPLAYS; i++) {
      start.record(this.stream);
      replay.launch(this.stream);
      end.record(this.stream);
      end.synchronize();
      if (i > 0) best = Math.min(best, end.elapsedSince(start));
    }
    return best;
  }
}

/** The choice among candidates in the order of their rank; undefined when none could be timed. */
export function chosen<T extends { readonly time: number }>(timed: readonly T[]): T | undefined {
  const fastest = Math.min(...timed.map(({ time }) => time));
  return fastest < Infinity ? timed.find(({ time }) => time <= fastest * TOLERANCE) : undefined;
}

/** The result of `run`; undefined when the device refused, but goes on. */
export function attempt<T>(run: () => T): T | undefined {
  try {
    return run();
  } catch (error) {
    if (error instanceof DeviceError && !error.fatal) return undefined;
    throw error;
  }
}
