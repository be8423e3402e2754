import { expect, setDefaultTimeout, test } from "bun:test";
import { Metrics, parseMetrics, quantile } from "../../../src/page/metrics/metrics-text.ts";

setDefaultTimeout(300_000);

const TEXT = `# HELP x_total A counter.
# TYPE x_total counter
x_total{engine="0",model_name="a \\"b\\", {c}"} 3
x_total{engine="1",model_name="a"} 4.5
up 1
t_bucket{le="1",engine="0"} 2
t_bucket{le="+Inf",engine="0"} 4
t_bucket{le="0.5",engine="0"} 0
nonsense`;
const metrics = new Metrics(parseMetrics(TEXT));

test("samples are read with their labels, and summed by them", () => {
  expect(parseMetrics(TEXT)[0]).toEqual({
    ...{ name: "x_total", value: 3, labels: { engine: "0", model_name: 'a "b", {c}' } },
  });
  expect([metrics.sum("x_total"), metrics.sum("x_total", { engine: "1" })]).toEqual([7.5, 4.5]);
  expect([metrics.sum("up"), metrics.sum("down")]).toEqual([1, undefined]);
  expect([...metrics.by("x_total", "engine")]).toEqual([
    ["0", 3],
    ["1", 4.5],
  ]);
  expect(metrics.values("engine")).toEqual(["0", "1"]);
});

test("a quantile lies within its bucket, of what was counted since", () => {
  const now = metrics.buckets("t");
  expect([...now]).toEqual([
    [0.5, 0],
    [1, 2],
    [Infinity, 4],
  ]);
  expect(quantile(0.25, now)).toBe(0.75);
  expect(quantile(0.99, now)).toBe(1);
  expect(
    quantile(
      0.5,
      now,
      new Map([
        [0.5, 0],
        [1, 0],
        [Infinity, 2],
      ]),
    ),
  ).toBe(0.75);
  expect(quantile(0.5, now, now)).toBeUndefined();
});
