import { expect, setDefaultTimeout, test } from "bun:test";
import { samplingOf, streams, streamsValue } from "../../bench/workload.ts";

setDefaultTimeout(300_000);

test("streams are read from their name", () => {
  const [first, second] = streamsValue("1x1024+1", streamsValue("16x32+128"));
  expect(first).toEqual(streams(16, 32, 128));
  expect(first!.name).toBe("16x32+128");
  expect(first!.requests.map(({ promptTokenIds }) => promptTokenIds[0])).toHaveLength(16);
  expect(new Set(first!.requests.map(({ promptTokenIds }) => promptTokenIds[0])).size).toBe(16);
  expect(second!.requests[0]).toMatchObject({ maxTokens: 1 });
  expect(second!.requests[0]!.promptTokenIds).toHaveLength(1024);
});

test.each(["", "16", "0x32+1", "1x0+1", "1x1+0", "1x32", "1x32+1:top", "-1x32+1"])(
  "%p names none",
  (text) => {
    expect(() => streamsValue(text)).toThrow("COUNTxPROMPT+OUTPUT");
  },
);

test("one stream alone asks for log-probabilities, where the name says so", () => {
  const [plain, asking] = streamsValue("3x4+5:logprobs", streamsValue("3x4+5"));
  expect(samplingOf(plain!).some((params) => "logprobs" in params)).toBe(false);
  expect(samplingOf(asking!).map(({ logprobs }) => logprobs)).toEqual([1, undefined, undefined]);
  expect(asking!.name).toBe("3x4+5:logprobs");
});
