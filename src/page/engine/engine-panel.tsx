import type { ComponentChildren } from "preact";
import { useEffect, useState } from "preact/hooks";
import { figure } from "../figure.ts";
import { useStore } from "../store.ts";
import { TimeChart } from "../time-chart.tsx";
import { BatchList } from "./batch-list.tsx";
import { BlockLegend, BlockMap } from "./block-map.tsx";
import type { EngineFeed } from "./engine-feed.ts";
import type { EngineHistory, SeriesName } from "./engine-history.ts";
import { describePool, type EngineState } from "./engine-state.ts";
import { QueueList } from "./queue-list.tsx";

/** Seconds that charts show. */
const SPAN = 60;

interface EnginePanelProps {
  readonly feed: EngineFeed;
  /** Beside a chat: the least that tells how it goes. */
  readonly isCompact: boolean;
}

/** The engine, live. */
export function EnginePanel({ feed, isCompact }: EnginePanelProps) {
  useEffect(() => feed.watch(), [feed]);
  const state = useStore(feed.state);
  const status = useStore(feed.status);
  const problem = useStore(feed.problem);
  const [focus, setFocus] = useState<number | undefined>();
  if (!state)
    return (
      <section class="panel engine" aria-label="Engine">
        <p class="muted empty">{status === "lost" ? problem : "Connecting to the engine"}</p>
      </section>
    );
  const { facts } = state;
  const parts = { state, focus, onFocus: setFocus };
  return (
    <section class={isCompact ? "panel engine compact" : "panel engine"} aria-label="Engine">
      <header>
        <h2>Engine</h2>
        <ReplicaChooser feed={feed} state={state} />
        <span class={`status ${status}`} role="status">
          {status === "live" ? "live" : status === "lost" ? `lost: ${problem}` : status}
        </span>
      </header>
      <Figures state={state} history={feed.history} />
      <div class="columns">
        <div>
          <Part title="KV cache" name="map">
            <BlockMap {...parts} height={isCompact ? 250 : 420} />
            <BlockLegend />
          </Part>
          <Charts state={state} history={feed.history} isCompact={isCompact} />
        </div>
        <div>
          <Part title={`Batch · ${state.stats.running}`} name="batch-part">
            <BatchList {...parts} most={isCompact ? 8 : 24} />
          </Part>
          <Part title={`Queue · ${state.stats.waiting}`} name="queue-part">
            <QueueList state={state} most={isCompact ? 4 : 16} />
          </Part>
          <Part title="Events" name="events-part">
            <Events feed={feed} most={isCompact ? 6 : 16} />
          </Part>
        </div>
      </div>
      <footer class="muted">
        {facts.model} on {facts.device} in {facts.dtype} · {describePool(facts)} · at most {facts.maxNumSeqs}{" "}
        sequences, {facts.maxNumBatchedTokens} tokens a step · Octavo {facts.version}
      </footer>
    </section>
  );
}

function Part({
  title,
  name,
  children,
}: {
  readonly title: string;
  readonly name: string;
  readonly children: ComponentChildren;
}) {
  return (
    <section class={`part-box ${name}`} aria-labelledby={`t-${name}`}>
      <h3 id={`t-${name}`}>{title}</h3>
      {children}
    </section>
  );
}

function ReplicaChooser({ feed, state }: { readonly feed: EngineFeed; readonly state: EngineState }) {
  const { replica, replicas } = state.facts;
  if (replicas === 1) return null;
  return (
    <select
      aria-label="Replica"
      value={String(replica)}
      onChange={(event) => feed.choose(Number(event.currentTarget.value))}
    >
      {Array.from({ length: replicas }, (_, i) => (
        <option key={String(i)} value={String(i)}>
          replica {i}
        </option>
      ))}
    </select>
  );
}

function Figures({ state, history }: { readonly state: EngineState; readonly history: EngineHistory }) {
  const { stats } = state;
  const { latest } = history;
  const hits = stats.prefixQueries > 0 ? (100 * stats.prefixHits) / stats.prefixQueries : undefined;
  return (
    <dl class="figures">
      <Figure name="tokens/s" value={figure(latest?.generated)} />
      <Figure name="running" value={figure(stats.running)} />
      <Figure name="waiting" value={figure(stats.waiting)} />
      <Figure name="KV in use" value={`${figure(100 * stats.kvUsage)}%`} />
      <Figure name="cache hits" value={hits === undefined ? "–" : `${figure(hits)}%`} />
      <Figure name="first token" value={`${figure(history.last("firstToken50"))} ms`} />
      <Figure name="next token" value={`${figure(history.last("interToken50"))} ms`} />
      <Figure name="preemptions" value={figure(stats.preemptions)} isAlarming={stats.preemptions > 0} />
    </dl>
  );
}

interface FigureProps {
  readonly name: string;
  readonly value: string;
  readonly isAlarming?: boolean;
}

function Figure({ name, value, isAlarming = false }: FigureProps) {
  return (
    <div class={isAlarming ? "alarming" : undefined}>
      <dt>{name}</dt>
      <dd>{value}</dd>
    </div>
  );
}

function Charts({
  state,
  history,
  isCompact,
}: {
  readonly state: EngineState;
  readonly history: EngineHistory;
  readonly isCompact: boolean;
}) {
  const shared = { times: history.times, span: SPAN, version: state };
  const line = (label: string, name: SeriesName, color: string, fill = false) => {
    return { label, values: history.values[name], color, fill, marks: name.startsWith("firstToken") };
  };
  const speed = (
    <TimeChart
      {...shared}
      title="Tokens"
      unit="a second"
      series={[line("generated", "generated", "--series-1", true), line("prompt", "prefilled", "--series-2")]}
    />
  );
  if (isCompact) return <div class="charts">{speed}</div>;
  return (
    <div class="charts">
      {speed}
      <TimeChart
        {...shared}
        title="Sequences"
        unit=""
        series={[line("running", "running", "--series-1", true), line("waiting", "waiting", "--series-3")]}
      />
      <TimeChart
        {...shared}
        title="First token"
        unit="ms"
        series={[line("p50", "firstToken50", "--series-1"), line("p99", "firstToken99", "--series-3")]}
      />
      <TimeChart
        {...shared}
        title="Between tokens"
        unit="ms"
        series={[line("p50", "interToken50", "--series-1"), line("p99", "interToken99", "--series-3")]}
      />
      <TimeChart
        {...shared}
        title="KV cache"
        unit="%"
        series={[
          line("in use", "kvUsage", "--series-1", true),
          line("prompt tokens found", "hitRate", "--series-2"),
        ]}
      />
    </div>
  );
}

function Events({ feed, most }: { readonly feed: EngineFeed; readonly most: number }) {
  const { list } = feed.events;
  if (list.length === 0) return <p class="muted empty">Nothing has happened yet.</p>;
  const now = feed.state.value?.time ?? 0;
  return (
    <ol class="events">
      {list.slice(0, most).map(({ number, time, kind, text }) => (
        <li key={number} class={kind}>
          <time class="muted">{Math.round(now - time)} s</time> {text}
        </li>
      ))}
    </ol>
  );
}
