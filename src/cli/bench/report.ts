import type { Trace } from "./completion-client.ts";

/** Mean and percentiles of samples in milliseconds. */
export interface Distribution {
  readonly mean: number;
  readonly p50: number;
  readonly p90: number;
  readonly p99: number;
}

/** The results of a benchmark. Rates are per second; failed requests count only as failures. */
export interface Report {
  readonly completed: number;
  readonly failed: number;
  /** Each reason once, the most frequent first. */
  readonly failures: readonly { readonly reason: string; readonly count: number }[];
  /** From the first request to the last token. */
  readonly seconds: number;
  readonly promptTokens: number;
  readonly outputTokens: number;
  readonly requestsPerSecond: number;
  readonly outputTokensPerSecond: number;
  readonly totalTokensPerSecond: number;
  /** Time to first token. */
  readonly ttft: Distribution;
  /** Between events that bring tokens, over all requests. */
  readonly itl: Distribution;
  /** Per output token after the first, of each request. */
  readonly tpot: Distribution;
  /** From request to last token. */
  readonly e2e: Distribution;
}

/** Sums up at least one trace. */
export function summarize(traces: readonly Trace[]): Report {
  const completed = traces.filter(({ failure }) => failure === undefined);
  const ends = completed.map(({ tokenTimes }) => tokenTimes.at(-1)!);
  const firstStart = traces.reduce((least, { startTime }) => Math.min(least, startTime), Infinity);
  const lastEnd = ends.reduce((most, end) => Math.max(most, end), firstStart);
  const seconds = (lastEnd - firstStart) / 1000;
  const promptTokens = completed.reduce((sum, trace) => sum + trace.promptTokens, 0);
  const outputTokens = completed.reduce((sum, trace) => sum + trace.outputTokens, 0);
  const perSecond = (count: number) => (seconds > 0 ? count / seconds : 0);
  const several = completed.filter((trace) => trace.outputTokens > 1);
  return {
    ...{ completed: completed.length, failed: traces.length - completed.length, failures: failures(traces) },
    ...{ seconds, promptTokens, outputTokens },
    requestsPerSecond: perSecond(completed.length),
    outputTokensPerSecond: perSecond(outputTokens),
    totalTokensPerSecond: perSecond(promptTokens + outputTokens),
    ttft: distribution(completed.map(({ startTime, tokenTimes }) => tokenTimes[0]! - startTime)),
    itl: distribution(
      completed.flatMap(({ tokenTimes }) => tokenTimes.slice(1).map((time, i) => time - tokenTimes[i]!)),
    ),
    tpot: distribution(
      several.map((trace) => (trace.tokenTimes.at(-1)! - trace.tokenTimes[0]!) / (trace.outputTokens - 1)),
    ),
    e2e: distribution(completed.map(({ startTime }, i) => ends[i]! - startTime)),
  };
}

/** Percentiles between two samples are interpolated. Zeros without samples. */
export function distribution(samples: readonly number[]): Distribution {
  const sorted = Float64Array.from(samples).sort();
  const percentile = (share: number) => {
    const at = share * (sorted.length - 1);
    const [below, above] = [sorted[Math.floor(at)] ?? 0, sorted[Math.ceil(at)] ?? 0];
    return below + (above - below) * (at - Math.floor(at));
  };
  const mean = sorted.reduce((sum, value) => sum + value, 0) / Math.max(1, sorted.length);
  return { mean, p50: percentile(0.5), p90: percentile(0.9), p99: percentile(0.99) };
}

/** The report as a table. */
export function formatReport(report: Report): string {
  const count = (title: string, value: number, digits = 0) =>
    `${title.padEnd(28)}${value.toFixed(digits).padStart(12)}`;
  const times = (title: string, { mean, p50, p90, p99 }: Distribution) =>
    title.padEnd(28) + [mean, p50, p90, p99].map((value) => value.toFixed(2).padStart(12)).join("");
  return [
    count("Requests completed", report.completed),
    count("Requests failed", report.failed),
    ...report.failures.map(({ reason, count }) => `  ${count} × ${reason}`),
    count("Duration (s)", report.seconds, 2),
    count("Prompt tokens", report.promptTokens),
    count("Output tokens", report.outputTokens),
    count("Requests/s", report.requestsPerSecond, 2),
    count("Output tokens/s", report.outputTokensPerSecond, 1),
    count("Total tokens/s", report.totalTokensPerSecond, 1),
    "",
    "Milliseconds".padEnd(28) + ["mean", "p50", "p90", "p99"].map((name) => name.padStart(12)).join(""),
    times("Time to first token", report.ttft),
    times("Inter-token latency", report.itl),
    times("Time per output token", report.tpot),
    times("End to end", report.e2e),
  ].join("\n");
}

function failures(traces: readonly Trace[]): Report["failures"] {
  const counts = new Map<string, number>();
  for (const { failure } of traces)
    if (failure !== undefined) counts.set(failure, (counts.get(failure) ?? 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1]).map(([reason, count]) => ({ reason, count }));
}
