import { expect, setDefaultTimeout, test } from "bun:test";
import { type DrawKind, GraphRunner } from "../../../src/runner/graph-runner.ts";
import { extentsOf, type StepBucket } from "../../../src/runner/step-buffers.ts";

setDefaultTimeout(300_000);

/** Records what is captured, and which graphs are alive. */
function setUp(maxRows: number, maxTokens: number) {
  const captured: { bucket: StepBucket; kind: DrawKind }[] = [];
  let alive = 0;
  const graphs = new GraphRunner({ maxRows, maxTokens }, (bucket, kind) => {
    captured.push({ bucket, kind });
    const graph = () => {
      alive++;
      return { launch: () => {}, dispose: () => void alive-- };
    };
    return { begin: graph(), draw: kind === "masked" ? graph() : undefined };
  });
  return { graphs, captured, alive: () => alive };
}

test("decode steps are captured at once, the largest first; those of another kind when they come", () => {
  const { graphs, captured, alive } = setUp(6, 64);
  expect(captured).toEqual([6, 4, 2, 1].map((decodeRows) => ({ bucket: { decodeRows }, kind: "plain" })));
  const bucket = graphs.bucketFor(3, 0)!;
  expect(bucket).toEqual({ decodeRows: 4 });
  const plain = graphs.find(bucket, "plain")!;
  const full = graphs.find(bucket, "full")!;
  expect([graphs.find(bucket, "plain"), graphs.find(bucket, "full")]).toEqual([plain, full]);
  const masked = graphs.find(bucket, "masked")!;
  expect(graphs.find(bucket, "masked")).toBe(masked);
  expect(captured).toHaveLength(6);
  expect(alive()).toBe(7);
  graphs.dispose();
  expect(alive()).toBe(0);
});

test("steps of a prompt are captured when they come again", () => {
  const { graphs, captured } = setUp(6, 64);
  const before = captured.length;
  const bucket = graphs.bucketFor(0, 20)!;
  expect(graphs.find(bucket, "plain")).toBeUndefined();
  expect(graphs.find(bucket, "full")).toBeUndefined();
  expect(captured).toHaveLength(before);
  const graph = graphs.find(graphs.bucketFor(0, 30)!, "plain");
  expect(graph).toBeDefined();
  expect(graphs.find(bucket, "plain")).toBe(graph!);
  expect(captured).toHaveLength(before + 1);
});

test.each([
  [1, 20],
  [1, 16384],
  [6, 64],
  [300, 310],
])(
  "every bucket of %d rows and %d tokens holds its step, and is a step that there can be",
  (maxRows, maxTokens) => {
    const { graphs } = setUp(maxRows, maxTokens);
    for (let decodeRows = 1; decodeRows <= maxRows; decodeRows++) {
      const { numRows, numTokens, numSamples } = extentsOf(graphs.bucketFor(decodeRows, 0)!);
      expect([numTokens, numSamples]).toEqual([numRows, numRows]);
      expect(numRows).toBeGreaterThanOrEqual(decodeRows);
      expect(numRows).toBeLessThanOrEqual(maxRows);
      expect(graphs.bucketFor(decodeRows, 20)).toBeUndefined();
    }
    expect(graphs.bucketFor(maxRows + 1, 0)).toBeUndefined();
    for (let tokens = 2; tokens < 300; tokens++) {
      const bucket = graphs.bucketFor(0, tokens);
      // What is left out is long, or the largest steps there can be.
      if (bucket === undefined) expect(tokens > 256 || 2 * Math.max(16, tokens) > maxTokens).toBe(true);
      else {
        const { numTokens, maxQueryLen, numRows } = extentsOf(bucket);
        expect([numRows, maxQueryLen]).toEqual([1, numTokens]);
        expect(numTokens).toBeGreaterThanOrEqual(tokens);
        expect(numTokens).toBeLessThanOrEqual(maxTokens);
      }
    }
  },
);
