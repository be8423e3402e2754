import { expect, setDefaultTimeout, test } from "bun:test";
import { type DrawKind, decodeBuckets, GraphRunner } from "../../../src/runner/graph-runner.ts";
import { extentsOf, type StepBucket } from "../../../src/runner/step-buffers.ts";

setDefaultTimeout(300_000);

/** Records what is captured, and which graphs are alive. */
function setUp(maxRows: number, maxTokens: number) {
  const captured: { bucket: StepBucket; kind: DrawKind }[] = [];
  let alive = 0;
  const graphs = new GraphRunner({ maxRows, maxTokens }, (bucket, kind) => {
    captured.push({ bucket, kind });
    alive++;
    const dispose = () => {
      alive--;
    };
    return { launch: () => {}, dispose };
  });
  return { graphs, captured, alive: () => alive };
}

test("decode steps are captured at once, the largest first; those of another kind when they come", () => {
  const { graphs, captured, alive } = setUp(6, 64);
  const sizes = captured.map(({ bucket, kind }) => [bucket.decodeRows, bucket.promptTokens, kind]);
  expect(sizes).toEqual([6, 4, 2, 1].map((rows) => [rows, 0, "plain"]));
  const bucket = graphs.bucketFor(3, 0)!;
  expect(bucket.decodeRows).toBe(4);
  const plain = graphs.find(bucket, "plain")!;
  const full = graphs.find(bucket, "full")!;
  expect([graphs.find(bucket, "plain"), graphs.find(bucket, "full")]).toEqual([plain, full]);
  expect(captured).toHaveLength(5);
  graphs.dispose();
  expect(alive()).toBe(0);
});

test("steps with a prompt are captured when they come again", () => {
  const { graphs, captured } = setUp(6, 64);
  const before = captured.length;
  const bucket = graphs.bucketFor(2, 20)!;
  expect(graphs.find(bucket, "plain")).toBeUndefined();
  expect(graphs.find(bucket, "full")).toBeUndefined();
  expect(captured).toHaveLength(before);
  const graph = graphs.find(graphs.bucketFor(2, 30)!, "plain");
  expect(graph).toBeDefined();
  expect(graphs.find(bucket, "plain")).toBe(graph!);
  expect(captured).toHaveLength(before + 1);
});

test.each([
  [1, 32],
  [1, 16384],
  [6, 64],
  [256, 16384],
  [300, 310],
])(
  "every bucket of %d rows and %d tokens holds its step, and is a step that there can be",
  (maxRows, maxTokens) => {
    const { graphs } = setUp(maxRows, maxTokens);
    const prompts = new Set<string>();
    for (let decodeRows = 0; decodeRows < maxRows; decodeRows++) {
      for (const promptTokens of [2, 31, 32, 33, 128, 200, 256, 257, 5000]) {
        const bucket = graphs.bucketFor(decodeRows, promptTokens);
        if (bucket === undefined) {
          // What is left out is long, or the largest steps there can be.
          expect(promptTokens > 256 || 2 * decodeRows + 256 > maxTokens).toBe(true);
          continue;
        }
        prompts.add(`${bucket.decodeRows}+${bucket.promptTokens}`);
        expect(bucket.decodeRows).toBeGreaterThanOrEqual(decodeRows);
        expect(bucket.decodeRows === 0).toBe(decodeRows === 0);
        expect(bucket.promptTokens).toBeGreaterThanOrEqual(promptTokens);
        const { numTokens, numRows, numSamples } = extentsOf(bucket);
        expect(numTokens).toBeLessThanOrEqual(maxTokens);
        expect(numRows).toBeLessThanOrEqual(maxRows);
        expect(numSamples).toBe(numRows);
      }
    }
    expect(prompts.size).toBeLessThanOrEqual(33);
    expect(graphs.bucketFor(maxRows, 0)!.decodeRows).toBe(maxRows);
    expect(decodeBuckets(maxRows).at(-1)).toBe(maxRows);
  },
);
