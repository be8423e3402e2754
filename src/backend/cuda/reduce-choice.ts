import type { Context } from "../../cuda/context.ts";
import { Graph } from "../../cuda/graph.ts";
import { Event, type Stream } from "../../cuda/stream.ts";
import { awaitRanks, type RankExchange, shareNumbers } from "./rank-exchange.ts";

/** The smallest message that ways are compared at; smaller ones are Octavo's own. */
const LEAST_BYTES = 2 ** 15;
/** Sums of a timing, or fewer that are of so many bytes: the start of a graph, and that of the ranks one after another, do not count. */
const SUMS = 64;
const SUMMED_BYTES = 2 ** 28;
/** Timed replays; the fastest counts. */
const REPLAYS = 3;

/** Two ways to sum over ranks; each enqueues a sum of a message of so many bytes. */
export interface ReduceWays {
  readonly own: (bytes: number) => void;
  readonly nccl: (bytes: number) => void;
}

/** One rank's GPU, and the way between the ranks' threads. */
export interface MeasuredRank {
  readonly context: Context;
  readonly stream: Stream;
  readonly exchange: RankExchange;
  /** See `CudaCommunicator`. */
  readonly settle: () => void;
  readonly wait: (event: Event) => void;
}

/** Sizes from 32 KiB, doubling, as far as `most`. */
export function comparedSizes(most: number): number[] {
  return Array.from(
    { length: Math.floor(Math.log2(most / LEAST_BYTES)) + 1 },
    (_, i) => LEAST_BYTES * 2 ** i,
  );
}

/** The largest of the sizes up to which the first way is nowhere slower; where it is from the start, half of the first. */
export function crossover(
  sizes: readonly number[],
  own: readonly number[],
  other: readonly number[],
): number {
  const lost = sizes.findIndex((_, i) => own[i]! > other[i]!);
  if (lost === -1) return sizes.at(-1)!;
  return lost === 0 ? sizes[0]! / 2 : sizes[lost - 1]!;
}

/**
 * Bytes of the largest message that is summed by Octavo's own kernel rather than NCCL's, as captured steps run them: by the time
 * of the slowest rank, so that all ranks come to the same. Every rank must call it at the same point of its work.
 */
export function measureCrossover(rank: MeasuredRank, ways: ReduceWays, most: number): number {
  const sizes = comparedSizes(most);
  const time = (way: (bytes: number) => void) =>
    sizes.map((bytes) => {
      // Every rank has freed its last graph.
      awaitRanks(rank.exchange);
      // Compiles and connects, which capturing forbids.
      way(bytes);
      return replayTime(rank, () => {
        for (let i = 0; i < Math.min(SUMS, SUMMED_BYTES / bytes); i++) way(bytes);
      });
    });
  const [own, nccl] = [time(ways.own), time(ways.nccl)];
  const all = shareNumbers(rank.exchange, ...own, ...nccl);
  const slowest = [...own, ...nccl].map((_, i) => Math.max(...all.map((times) => times[i]!)));
  return crossover(sizes, slowest.slice(0, sizes.length), slowest.slice(sizes.length));
}

/**
 * Milliseconds of a replay of what `enqueue` puts on the stream. All ranks replay at the same time, and graphs come and go while
 * no GPU waits for another: the driver may wait for GPUs then.
 */
function replayTime(rank: MeasuredRank, enqueue: () => void): number {
  const { context, stream, exchange, settle, wait } = rank;
  using start = Event.create(context, { timing: true });
  using end = Event.create(context, { timing: true });
  settle();
  using graph = Graph.capture(stream, enqueue);
  awaitRanks(exchange);
  using replay = graph.instantiate();
  replay.upload(stream);
  let best = Infinity;
  for (let i = 0; i <= REPLAYS; i++) {
    settle();
    start.record(stream);
    replay.launch(stream);
    end.record(stream);
    wait(end);
    if (i > 0) best = Math.min(best, end.elapsedSince(start));
  }
  settle();
  return best;
}
