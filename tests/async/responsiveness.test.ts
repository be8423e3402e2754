import { expect, setDefaultTimeout, test } from "bun:test";
import { busyTurns, eventually } from "../support.ts";
import { createAsyncLLM, expectIdle, LONG, PROMPT, rejection } from "./support.ts";

setDefaultTimeout(300_000);

test("this thread stays free while the engine is saturated and a long text is tokenized", async () => {
  await using asyncLLM = await createAsyncLLM();
  const streams = await Promise.all(
    Array.from({ length: 48 }, (_, i) => asyncLLM.submit(`${PROMPT} ${i}`, LONG)),
  );
  const readers = streams.map(async (stream) => {
    for await (const _ of stream);
  });
  const text = "The little girl said hello to the dog. ".repeat(13_000);
  expect(text.length).toBeGreaterThan(500_000);
  const { steps } = asyncLLM.stats;
  const turns = await busyTurns(async () => {
    const refused = rejection(asyncLLM.submit(text));
    const { tokenIds } = await asyncLLM.tokenize(text);
    expect(tokenIds.length).toBeGreaterThan(100_000);
    expect(await refused).toMatchObject({ code: "context_length_exceeded" });
    await eventually(() => asyncLLM.stats.steps > steps);
  });
  expect(turns[Math.floor(0.99 * turns.length)]).toBeLessThan(20);
  for (const stream of streams) stream.abort();
  await Promise.all(readers);
  await expectIdle(asyncLLM);
});
