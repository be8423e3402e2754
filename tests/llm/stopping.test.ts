import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import type { LLM, SamplingParams } from "../../src/index.ts";
import { collect, complete, createLLM, PROMPT, rejection } from "./support.ts";

setDefaultTimeout(300_000);

/** The greedy continuation begins: ", there was a little girl named Lily. She loved to play outside in the sun." */
const STORY: SamplingParams = { temperature: 0, maxTokens: 18 };
const NAMED = 509;
const [END, IM_END] = [4089, 4091];

let llm: LLM;
beforeAll(async () => {
  llm = await createLLM();
});
afterAll(() => llm.dispose());

describe("stop strings", () => {
  const stopped = (text: string, stopReason: string) => ({ text, finishReason: "stop" as const, stopReason });

  test("the text ends before the stop string, or after it on request", async () => {
    const stop = ["Lily"];
    expect(await complete(llm, { ...STORY, stop })).toMatchObject(
      stopped(", there was a little girl named ", "Lily"),
    );
    const included = await complete(llm, { ...STORY, stop, includeStopStrInOutput: true });
    expect(included).toMatchObject(stopped(", there was a little girl named Lily", "Lily"));
    expect(included.tokenIds).toHaveLength(8);
  });

  test("a stop string may span tokens and end inside one", async () => {
    const stop = "irl named Li";
    expect(await complete(llm, { ...STORY, stop })).toMatchObject(stopped(", there was a little g", stop));
    const included = await complete(llm, { ...STORY, stop, includeStopStrInOutput: true });
    expect(included.text).toBe(", there was a little girl named Li");
  });

  test("of several, the first to be complete wins", async () => {
    const output = await complete(llm, { ...STORY, stop: ["sun", "girl named Lily", "Lily. She", "girl"] });
    expect(output).toMatchObject(stopped(", there was a little ", "girl"));
  });

  test("one that never comes changes nothing", async () => {
    expect(await complete(llm, { ...STORY, stop: ["Lily!", "zebra"] })).toEqual(await complete(llm, STORY));
  });

  test("a stream never shows any of it", async () => {
    const deltas = await collect(llm.stream(PROMPT, { ...STORY, stop: "girl named Lily." }));
    expect(deltas.map(({ text }) => text).join("")).toBe(", there was a little ");
    expect(deltas.at(-1)).toMatchObject({ finishReason: "stop", stopReason: "girl named Lily." });
  });

  test("the prompt is not searched", async () => {
    expect((await complete(llm, { ...STORY, stop: "upon" })).finishReason).toBe("length");
  });
});

describe("stop tokens and the end of a sequence", () => {
  test("a stop token ends the text, is named, and its own text is left out", async () => {
    const output = await complete(llm, { ...STORY, stopTokenIds: [NAMED, 700] });
    expect(output).toMatchObject({
      ...{ text: ", there was a little girl", finishReason: "stop", stopReason: NAMED },
    });
    expect(output.tokenIds.at(-1)).toBe(NAMED);
  });

  test.each([END, IM_END])(
    "the model's end-of-sequence token %d ends without a reason to name",
    async (id) => {
      const output = await complete(llm, { ...STORY, logitBias: { [id]: 100 } });
      expect(output).toMatchObject({ text: "", tokenIds: [id], finishReason: "stop", stopReason: null });
    },
  );

  test("ignoreEos goes on; special tokens appear in the text only on request", async () => {
    const params = { temperature: 0, maxTokens: 3, logitBias: { [END]: 100 }, ignoreEos: true };
    const hidden = await complete(llm, params);
    expect(hidden).toMatchObject({ text: "", tokenIds: [END, END, END], finishReason: "length" });
    const shown = await complete(llm, { ...params, skipSpecialTokens: false });
    expect(shown.text).toBe("<|endoftext|>".repeat(3));
  });

  test("a stop token counts under ignoreEos, even if it is an end-of-sequence token", async () => {
    const params = { ...STORY, logitBias: { [END]: 100 }, ignoreEos: true, stopTokenIds: [END] };
    expect(await complete(llm, params)).toMatchObject({ tokenIds: [END], stopReason: END });
  });
});

describe("minTokens", () => {
  test("holds back the end of the sequence, then lets it come", async () => {
    const output = await complete(llm, { ...STORY, logitBias: { [END]: 100 }, minTokens: 5 });
    expect(output.tokenIds).toHaveLength(6);
    expect(output.tokenIds.indexOf(END)).toBe(5);
  });

  test("holds back stop tokens", async () => {
    const { tokenIds } = await complete(llm, { ...STORY, stopTokenIds: [NAMED], minTokens: 10 });
    expect(tokenIds.length).toBeGreaterThan(10);
    expect(tokenIds.slice(0, 10)).not.toContain(NAMED);
  });

  test("stop strings within the first tokens do not count", async () => {
    expect(await complete(llm, { ...STORY, stop: "Lily", minTokens: 10 })).toEqual(
      await complete(llm, STORY),
    );
    const later = await complete(llm, { ...STORY, stop: ["Lily", "outside"], minTokens: 10 });
    expect(later).toMatchObject({ stopReason: "outside" });
  });

  test("leaving nothing else to draw is refused", async () => {
    const params = { minTokens: 2, allowedTokenIds: [END, IM_END] };
    expect(await rejection(complete(llm, params))).toMatchObject({ param: "allowedTokenIds" });
  });
});

test("maxTokens 1 is one token", async () => {
  const output = await complete(llm, { temperature: 0, maxTokens: 1 });
  expect(output).toMatchObject({ text: ",", tokenIds: [11], finishReason: "length" });
});

describe("detokenize: false", () => {
  test("the tokens are the same, the text is empty", async () => {
    const plain = await complete(llm, STORY);
    expect(await complete(llm, { ...STORY, detokenize: false })).toEqual({ ...plain, text: "" });
  });

  test("a stream yields every token as it comes", async () => {
    const deltas = await collect(llm.stream(PROMPT, { ...STORY, maxTokens: 5, detokenize: false }));
    expect(deltas.map(({ text, tokenIds }) => [text, tokenIds.length])).toEqual(deltas.map(() => ["", 1]));
    expect(deltas).toHaveLength(5);
  });
});
