/** One sample of Prometheus' text format. */
export interface Sample {
  readonly name: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
}

/** The samples of a page of metrics, in their order. Lines that are none are passed over. */
export function parseMetrics(text: string): Sample[] {
  return text.split("\n").flatMap((line) => {
    const match = line.match(/^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/);
    if (!match) return [];
    const [, name, labels = "", value] = match;
    const found = [...labels.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(
      ([, label, quoted]) => [label!, unquoted(quoted!)] as const,
    );
    return [{ name: name!, labels: Object.fromEntries(found), value: numberOf(value!) }];
  });
}

function unquoted(text: string): string {
  return text.replace(/\\(.)/g, (_, letter: string) => (letter === "n" ? "\n" : letter));
}

function numberOf(text: string): number {
  if (text === "+Inf") return Number.POSITIVE_INFINITY;
  return text === "-Inf" ? Number.NEGATIVE_INFINITY : Number(text);
}

/** Values of counters, gauges and histograms by name, of all engines or of one. */
export class Metrics {
  readonly #samples: readonly Sample[];

  constructor(samples: readonly Sample[]) {
    this.#samples = samples;
  }

  /** Values of a label, in their order. */
  values(label: string): string[] {
    return [...new Set(this.#samples.flatMap(({ labels }) => (label in labels ? [labels[label]!] : [])))];
  }

  /** The sum of the samples of that name with these labels; undefined: there is none. */
  sum(name: string, labels: Readonly<Record<string, string>> = {}): number | undefined {
    const found = this.#of(name, labels);
    return found.length === 0 ? undefined : found.reduce((total, { value }) => total + value, 0);
  }

  /** The samples of a name by the value of a label, summed. */
  by(name: string, label: string): ReadonlyMap<string, number> {
    const sums = new Map<string, number>();
    for (const { labels, value } of this.#of(name, {}))
      sums.set(labels[label] ?? "", (sums.get(labels[label] ?? "") ?? 0) + value);
    return sums;
  }

  /** A histogram's counts up to each bound, bounds ascending. */
  buckets(name: string, labels: Readonly<Record<string, string>> = {}): ReadonlyMap<number, number> {
    const counts = new Map<number, number>();
    for (const { labels: own, value } of this.#of(`${name}_bucket`, labels)) {
      const bound = numberOf(own["le"] ?? "");
      counts.set(bound, (counts.get(bound) ?? 0) + value);
    }
    return new Map([...counts].sort(([a], [b]) => a - b));
  }

  #of(name: string, labels: Readonly<Record<string, string>>): Sample[] {
    return this.#samples.filter(
      (sample) =>
        sample.name === name &&
        Object.entries(labels).every(([label, value]) => sample.labels[label] === value),
    );
  }
}

/**
 * A quantile of what a histogram counted since `before`, as Prometheus estimates it: evenly spread within a bucket.
 * @param before undefined: since its start. @returns undefined without anything counted.
 */
export function quantile(
  q: number,
  now: ReadonlyMap<number, number>,
  before?: ReadonlyMap<number, number>,
): number | undefined {
  const counts = [...now].map(([bound, count]) => [bound, count - (before?.get(bound) ?? 0)] as const);
  const total = counts.at(-1)?.[1] ?? 0;
  if (total <= 0) return undefined;
  const rank = q * total;
  let [lower, below] = [0, 0];
  for (const [bound, count] of counts) {
    if (count >= rank) {
      if (bound === Number.POSITIVE_INFINITY) return lower;
      return lower + ((bound - lower) * (rank - below)) / Math.max(count - below, 1);
    }
    [lower, below] = [bound, count];
  }
  return lower;
}
