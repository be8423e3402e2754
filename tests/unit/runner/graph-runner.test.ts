import { expect, setDefaultTimeout, test } from "bun:test";
import { type DrawKind, GraphRunner } from "../../../src/runner/graph-runner.ts";
import { extentsOf, type StepBucket } from "../../../src/runner/step-buffers.ts";

setDefaultTimeout(300_000);

/** Records what is captured, and which graphs are alive. */
function setUp(maxRows: number, maxTokens: number, isOfEverySize = false) {
  const captured: { bucket: StepBucket; kind: DrawKind }[] = [];
  let alive = 0;
  /** How often what graphs work in has moved. */
  let moves = 0;
  /** How many of the graphs to come find that they have moved it themselves. */
  let growing = 0;
  const capture = (bucket: StepBucket, kind: DrawKind) => {
    captured.push({ bucket, kind });
    const graph = () => {
      alive++;
      return { launch: () => {}, dispose: () => void alive-- };
    };
    const then = moves;
    const isStale = () => moves !== then;
    if (growing > 0) {
      growing--;
      moves++;
    }
    return { begin: graph(), draw: kind === "masked" ? graph() : undefined, isStale };
  };
  const graphs = new GraphRunner({ maxRows, maxTokens }, capture, isOfEverySize);
  const grow = (times: number) => {
    growing = times;
  };
  return { graphs, captured, alive: () => alive, move: () => void moves++, grow };
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

test("of every size, decode steps are captured when they come, none of a prompt, and the last are kept", () => {
  const { graphs, captured, alive } = setUp(300, 64, true);
  expect(captured).toEqual([]);
  expect([graphs.bucketFor(0, 20), graphs.bucketFor(3, 20)]).toEqual([undefined, undefined]);
  const find = (rows: number) => graphs.find(graphs.bucketFor(rows, 0)!, "plain")!;
  const graph = find(3);
  expect(captured).toEqual([{ bucket: { decodeRows: 3 }, kind: "plain" }]);
  for (let rows = 100; rows < 131; rows++) find(rows);
  expect(find(3)).toBe(graph);
  expect(alive()).toBe(32);
  find(131);
  // Of 100 rows, which was launched longest ago.
  expect(alive()).toBe(32);
  expect(find(3)).toBe(graph);
  const count = captured.length;
  find(101);
  expect(captured).toHaveLength(count);
  find(100);
  expect(captured).toHaveLength(count + 1);
  graphs.dispose();
  expect(alive()).toBe(0);
});

test("a graph whose memory has moved is captured anew", () => {
  const { graphs, captured, alive, move } = setUp(6, 64, true);
  const masked = graphs.find({ decodeRows: 2 }, "masked");
  expect(graphs.find({ decodeRows: 2 }, "masked")).toBe(masked!);
  move();
  expect(graphs.find({ decodeRows: 2 }, "masked")).not.toBe(masked!);
  expect(captured).toHaveLength(2);
  expect(alive()).toBe(2);
  graphs.dispose();
  expect(alive()).toBe(0);
});

test("a graph that has moved what it works in is captured again, and nothing is left of it", () => {
  const { graphs, captured, alive, grow } = setUp(6, 64, true);
  grow(2);
  const graph = graphs.find({ decodeRows: 2 }, "masked")!;
  expect(graph.isStale()).toBe(false);
  expect([captured.length, alive()]).toEqual([3, 2]);
  expect(graphs.find({ decodeRows: 2 }, "masked")).toBe(graph);
  graphs.dispose();
  expect(alive()).toBe(0);
});
