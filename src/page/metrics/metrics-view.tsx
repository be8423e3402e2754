import { useEffect } from "preact/hooks";
import { figure } from "../figure.ts";
import { useStore } from "../store.ts";
import { TimeChart } from "../time-chart.tsx";
import type { MetricsFeed, Scrape } from "./metrics-feed.ts";
import { quantile } from "./metrics-text.ts";

/** Seconds that charts show, at least and at most. */
const SPAN = { least: 60, most: 600 };

/** Durations with their histograms. */
const DURATIONS = [
  ["First token", "vllm:time_to_first_token_seconds"],
  ["Between tokens", "vllm:inter_token_latency_seconds"],
  ["In the queue", "vllm:request_queue_time_seconds"],
  ["Prompt", "vllm:request_prefill_time_seconds"],
  ["Output", "vllm:request_decode_time_seconds"],
  ["Whole request", "vllm:e2e_request_latency_seconds"],
] as const;

/** The metrics of `/metrics`, for operators: of all engines, read every few seconds, and nothing can be changed from here. */
export function MetricsView({ feed }: { readonly feed: MetricsFeed }) {
  useEffect(() => feed.watch(), [feed]);
  const scrapes = useStore(feed.scrapes);
  const problem = useStore(feed.problem);
  const latest = scrapes.at(-1);
  return (
    <section class="panel metrics" aria-label="Metrics">
      <header>
        <h2>Metrics</h2>
        <span class={problem === "" ? "status live" : "status lost"} role="status">
          {problem === "" ? "every 5 s" : problem}
        </span>
        <a href="metrics">
          <code>/metrics</code>
        </a>
      </header>
      {latest ? <Contents scrapes={scrapes} latest={latest} /> : <p class="muted empty">Reading</p>}
    </section>
  );
}

function Contents({ scrapes, latest }: { readonly scrapes: readonly Scrape[]; readonly latest: Scrape }) {
  return (
    <>
      <MetricCharts scrapes={scrapes} latest={latest} />
      <EngineTable scrapes={scrapes} latest={latest} />
      <DurationTable scrapes={scrapes} latest={latest} />
      <div class="tables">
        <CountTable
          title="Completions by how they ended"
          of={latest}
          name="vllm:request_success_total"
          label="finished_reason"
        />
        <CountTable title="Requests by route" of={latest} name="octavo:http_requests_total" label="handler" />
        <CountTable title="Requests by status" of={latest} name="octavo:http_requests_total" label="status" />
      </div>
    </>
  );
}

/** The change of a counter between two scrapes, a second; null where it cannot be known. */
function rateOf(
  name: string,
  now: Scrape,
  before: Scrape | undefined,
  labels: Readonly<Record<string, string>> = {},
): number | null {
  const [a, b] = [before?.metrics.sum(name, labels), now.metrics.sum(name, labels)];
  if (!before || a === undefined || b === undefined || b < a) return null;
  return (b - a) / (now.time - before.time);
}

function MetricCharts({ scrapes, latest }: { readonly scrapes: readonly Scrape[]; readonly latest: Scrape }) {
  const elapsed = latest.time - scrapes[0]!.time;
  const span = Math.min(Math.max(SPAN.least, 60 * Math.ceil(elapsed / 60)), SPAN.most);
  const shared = { times: scrapes.map(({ time }) => time), span, version: latest };
  const each = (read: (scrape: Scrape, before: Scrape | undefined) => number | null | undefined) =>
    scrapes.map((scrape, i) => read(scrape, scrapes[i - 1]) ?? null);
  const rate = (name: string) => each((scrape, before) => rateOf(name, scrape, before));
  const gauge = (name: string, scale = 1) =>
    each(({ metrics }) => {
      const value = metrics.sum(name);
      return value === undefined ? undefined : value * scale;
    });
  const ms = (name: string, q: number) =>
    each(({ metrics }, before) => {
      const seconds = before && quantile(q, metrics.buckets(name), before.metrics.buckets(name));
      return seconds === undefined ? undefined : 1000 * seconds;
    });
  const numEngines = Math.max(1, latest.metrics.values("engine").length);
  const kvUsage = gauge("vllm:kv_cache_usage_perc", 100 / numEngines);
  return (
    <div class="charts">
      <TimeChart
        {...shared}
        title="Tokens"
        unit="a second"
        series={[
          {
            label: "generated",
            values: rate("vllm:generation_tokens_total"),
            color: "--series-1",
            fill: true,
          },
          { label: "prompt", values: rate("vllm:prompt_tokens_total"), color: "--series-2" },
        ]}
      />
      <TimeChart
        {...shared}
        title="Sequences"
        unit=""
        series={[
          { label: "running", values: gauge("vllm:num_requests_running"), color: "--series-1", fill: true },
          { label: "waiting", values: gauge("vllm:num_requests_waiting"), color: "--series-3" },
        ]}
      />
      <TimeChart
        {...shared}
        title="First token"
        unit="ms"
        series={[
          { label: "p50", values: ms("vllm:time_to_first_token_seconds", 0.5), color: "--series-1" },
          { label: "p99", values: ms("vllm:time_to_first_token_seconds", 0.99), color: "--series-3" },
        ]}
      />
      <TimeChart
        {...shared}
        title="KV cache in use"
        unit="%"
        series={[{ label: "mean", values: kvUsage, color: "--series-1", fill: true }]}
      />
    </div>
  );
}

function EngineTable({ scrapes, latest }: { readonly scrapes: readonly Scrape[]; readonly latest: Scrape }) {
  const before = scrapes.at(-2);
  const { metrics } = latest;
  return (
    <Table
      title="Engines"
      head={[
        "engine",
        "running",
        "waiting",
        "KV in use",
        "tok/s",
        "prompt tok/s",
        "cache hits",
        "preemptions",
        "state",
      ]}
      rows={metrics.values("engine").map((engine) => {
        const labels = { engine };
        const of = (name: string) => metrics.sum(name, labels);
        const queries = of("vllm:prefix_cache_queries_total") ?? 0;
        const hits = of("vllm:prefix_cache_hits_total") ?? 0;
        const isUp = of("octavo:replica_up");
        return [
          engine,
          figure(of("vllm:num_requests_running")),
          figure(of("vllm:num_requests_waiting")),
          `${figure(100 * (of("vllm:kv_cache_usage_perc") ?? 0))}%`,
          figure(rateOf("vllm:generation_tokens_total", latest, before, labels)),
          figure(rateOf("vllm:prompt_tokens_total", latest, before, labels)),
          queries > 0 ? `${figure((100 * hits) / queries)}%` : "–",
          figure(of("vllm:num_preemptions_total")),
          isUp === 0 ? "dead" : "up",
        ];
      })}
    />
  );
}

function DurationTable({
  scrapes,
  latest,
}: {
  readonly scrapes: readonly Scrape[];
  readonly latest: Scrape;
}) {
  const first = scrapes[0] === latest ? undefined : scrapes[0];
  const spelled = (seconds: number | undefined) => {
    if (seconds === undefined) return "–";
    return seconds < 1 ? `${figure(1000 * seconds)} ms` : `${figure(seconds)} s`;
  };
  return (
    <Table
      title="Durations"
      head={["", "p50 since opened", "p95", "p99", "p50 since start", "p95", "p99"]}
      rows={DURATIONS.map(([title, name]) => {
        const now = latest.metrics.buckets(name);
        const opened = first?.metrics.buckets(name);
        const quantiles = (before?: ReadonlyMap<number, number>) =>
          [0.5, 0.95, 0.99].map((q) => spelled(quantile(q, now, before)));
        return [title, ...(opened ? quantiles(opened) : ["–", "–", "–"]), ...quantiles()];
      })}
    />
  );
}

interface CountTableProps {
  readonly title: string;
  readonly of: Scrape;
  readonly name: string;
  readonly label: string;
}

function CountTable({ title, of, name, label }: CountTableProps) {
  const counts = [...of.metrics.by(name, label)].filter(([, count]) => count > 0);
  return (
    <Table title={title} head={["", "count"]} rows={counts.map(([value, count]) => [value, figure(count)])} />
  );
}

interface TableProps {
  readonly title: string;
  readonly head: readonly string[];
  readonly rows: readonly (readonly string[])[];
}

function Table({ title, head, rows }: TableProps) {
  return (
    // biome-ignore lint/a11y/noNoninteractiveTabindex: what scrolls must be reachable
    <section class="part-box scroll" tabIndex={0} aria-label={title}>
      <h3>{title}</h3>
      {rows.length === 0 ? (
        <p class="muted empty">None yet.</p>
      ) : (
        <table class="figures-table">
          <thead>
            <tr>
              {head.map((text, i) => (
                <th key={String(i)} scope="col">
                  {text}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {rows.map((row) => (
              <tr key={row[0]}>
                {row.map((cell, i) =>
                  i === 0 ? (
                    <th key="name" scope="row">
                      {cell}
                    </th>
                  ) : (
                    <td key={String(i)}>{cell}</td>
                  ),
                )}
              </tr>
            ))}
          </tbody>
        </table>
      )}
    </section>
  );
}
