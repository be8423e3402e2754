import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import { figure } from "./figure.ts";
import { useStore } from "./store.ts";
import { theme } from "./theme.ts";

export interface ChartSeries {
  readonly label: string;
  readonly values: readonly (number | null)[];
  /** The custom property with its colour. */
  readonly color: string;
  /** Fill below it. Default false. */
  readonly fill?: boolean;
  /** Mark each value: some have none beside them, and no line. Default false. */
  readonly marks?: boolean;
}

interface TimeChartProps {
  readonly title: string;
  readonly unit: string;
  /** Seconds. */
  readonly times: readonly number[];
  readonly series: readonly ChartSeries[];
  /** Seconds that it shows. */
  readonly span: number;
  /** Changes when times and values have. */
  readonly version: unknown;
  readonly height?: number;
}

/** Series over time, the latest at the right; their latest values stand beside the title, for all who cannot see the curves. */
export function TimeChart({ title, unit, times, series, span, version, height = 110 }: TimeChartProps) {
  const frame = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot>(undefined);
  const colors = useStore(theme);
  useEffect(() => {
    const element = frame.current!;
    const made = new uPlot(optionsOf(element, series, span, height), dataOf(times, series), element);
    plot.current = made;
    const observer = new ResizeObserver(([entry]) => {
      made.setSize({ width: Math.max(80, Math.floor(entry!.contentRect.width)), height });
    });
    observer.observe(element);
    return () => {
      observer.disconnect();
      made.destroy();
    };
  }, [colors, span, height]);
  useEffect(() => plot.current?.setData(dataOf(times, series)), [version]);
  return (
    <figure class="chart">
      <figcaption>
        <span class="chart-title">
          {title} <span class="muted">{unit}</span>
        </span>
        {series.map(({ label, values, color }) => (
          <span class="key" key={label}>
            <i style={{ background: `var(${color})` }} /> {label}{" "}
            <b>{figure(values.findLast((value) => value !== null))}</b>
          </span>
        ))}
      </figcaption>
      <div ref={frame} aria-hidden="true" />
    </figure>
  );
}

function dataOf(times: readonly number[], series: readonly ChartSeries[]): uPlot.AlignedData {
  return [times as number[], ...series.map(({ values }) => values as (number | null)[])];
}

function optionsOf(
  element: Element,
  series: readonly ChartSeries[],
  span: number,
  height: number,
): uPlot.Options {
  const style = getComputedStyle(element);
  const color = (name: string) => style.getPropertyValue(name).trim();
  const axis = { stroke: color("--muted"), font: "11px system-ui, sans-serif", ticks: { show: false } };
  const grid = { stroke: color("--line"), width: 1 };
  return {
    ...{ width: Math.max(80, element.clientWidth), height, legend: { show: false }, padding: [6, 6, 0, 0] },
    cursor: { show: false },
    scales: {
      x: { time: false, range: (_, __, max) => [(max ?? 0) - span, max ?? 0] },
      y: { range: (_, __, max) => [0, niceAbove(max ?? 0)] },
    },
    axes: [
      {
        ...axis,
        ...{ grid: { show: false }, size: 20 },
        splits: (_, __, ___, max) => [4, 3, 2, 1, 0].map((part) => max - (part * span) / 4),
        values: (self, splits) => splits.map((at) => ago(at - (self.scales["x"]!.max ?? 0))),
      },
      { ...axis, grid, size: 40, values: (_, splits) => splits.map((value) => figure(value)) },
    ],
    series: [
      {},
      ...series.map((one): uPlot.Series => {
        const stroke = color(one.color);
        const fill = one.fill ? { fill: `color-mix(in oklab, ${stroke} 16%, transparent)` } : {};
        const points = { show: one.marks ?? false, size: 4, fill: stroke };
        return { label: one.label, stroke, width: 1.5, spanGaps: true, points, ...fill };
      }),
    ],
  };
}

function ago(seconds: number): string {
  const back = Math.round(-seconds);
  if (back === 0) return "now";
  return back >= 120 ? `−${Math.round(back / 60)} min` : `−${back} s`;
}

/** The least of 1, 2, 5, 10 … that is not below. */
function niceAbove(value: number): number {
  if (!(value > 0)) return 1;
  const magnitude = 10 ** Math.floor(Math.log10(value));
  return (
    [1, 2, 5, 10].map((factor) => factor * magnitude).find((bound) => bound >= value * 1.02) ?? 10 * magnitude
  );
}
