import { SplitMix64 } from "../../base/random.ts";

export interface LoadOptions {
  /** Requests a second, on average; Infinity: all at once. */
  readonly requestRate: number;
  /** Requests under way at most; later ones wait. */
  readonly maxConcurrency: number;
  /** Of the times between requests. */
  readonly seed: number;
}

/** Sends the requests at Poisson-distributed times; the results come in the requests' order. */
export async function generateLoad<Request, Result>(
  requests: readonly Request[],
  options: LoadOptions,
  send: (request: Request) => Promise<Result>,
): Promise<Result[]> {
  const { requestRate, maxConcurrency, seed } = options;
  const arrivals = arrivalTimes(requests.length, requestRate, seed);
  let active = 0;
  let wake = () => {};
  const sent: Promise<Result>[] = [];
  const start = performance.now();
  for (const [i, request] of requests.entries()) {
    const wait = start + arrivals[i]! - performance.now();
    if (wait > 0) await Bun.sleep(wait);
    while (active >= maxConcurrency) {
      await new Promise<void>((resolve) => {
        wake = resolve;
      });
    }
    active++;
    sent.push(
      send(request).finally(() => {
        active--;
        wake();
      }),
    );
  }
  return Promise.all(sent);
}

/** Milliseconds from the start: sums of exponentially distributed gaps. */
export function arrivalTimes(count: number, requestRate: number, seed: number): readonly number[] {
  const random = new SplitMix64(seed);
  let time = 0;
  return Array.from({ length: count }, () => {
    const arrival = time;
    const uniform = Number(random.next() >> 11n) / 2 ** 53;
    time += (-Math.log(1 - uniform) / requestRate) * 1000;
    return arrival;
  });
}
