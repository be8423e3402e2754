import { expect, test } from "bun:test";
import { type Chunk, chunksOf } from "../../../src/server/chunks.ts";
import { StreamingEngine } from "../llm/streaming-engine.ts";

test("chunks are read on demand: a reader that pauses gets one for each choice, and nothing is lost", async () => {
  const streaming = new StreamingEngine();
  const stream = streaming.stream([
    { n: 2, maxTokens: 9 },
    { n: 2, maxTokens: 12 },
  ]);
  const chunks = chunksOf(stream, { interval: 1, signal: new AbortController().signal });
  const read: Chunk[] = [(await chunks.next()).value!];
  await streaming.idle();
  for await (const chunk of chunks) read.push(chunk);
  expect(read).toHaveLength(1 + 4);
  for (const [choice, tokens] of [9, 9, 12, 12].entries()) {
    const own = read.filter((chunk) => chunk.choice === choice);
    expect(own.flatMap(({ tokenIds }) => tokenIds)).toHaveLength(tokens);
    expect(own.at(-1)!.finishReason).toBe("length");
    expect(own[0]!.request).toBe(stream.requests[choice >> 1]!);
  }
});
