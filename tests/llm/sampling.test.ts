import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import type { LLM, SamplingParams } from "../../src/index.ts";
import { complete, createLLM, GREEDY, only, PROMPT, rejection } from "./support.ts";

setDefaultTimeout(300_000);

let llm: LLM;
beforeAll(async () => {
  llm = await createLLM();
});
afterAll(() => llm.dispose());

/** The id with the greatest score; the lowest of equals. */
function argmax(scores: Float32Array): number {
  return scores.indexOf(scores.reduce((most, score) => Math.max(most, score), -Infinity));
}

function logSoftmax(logits: Float32Array): Float32Array {
  const most = logits.reduce((a, b) => Math.max(a, b));
  const sum = logits.reduce((total, logit) => total + Math.exp(logit - most), 0);
  return logits.map((logit) => logit - most - Math.log(sum));
}

/** Raw logits that each token of `output` was drawn from: one row a token. */
async function logitsOf(prompt: readonly number[], output: readonly number[]): Promise<Float32Array[]> {
  const all = await llm.logits([...prompt, ...output]);
  const { vocabSize } = llm.modelConfig;
  return output.map((_, i) => {
    const row = prompt.length - 1 + i;
    return all.slice(row * vocabSize, (row + 1) * vocabSize);
  });
}

describe("truncation to one token is greedy", () => {
  const hot: SamplingParams = { ...GREEDY, temperature: 2, seed: 1 };
  test.each([{ topK: 1 }, { minP: 1 }, { topP: 1e-6 }])("%o", async (truncation) => {
    const open = { topK: 0, topP: 1, minP: 0 };
    expect(await complete(llm, { ...hot, ...open, ...truncation })).toEqual(await complete(llm, GREEDY));
    expect((await complete(llm, { ...hot, ...open })).text).not.toBe((await complete(llm, GREEDY)).text);
  });

  test("topK keeps to the k likeliest", async () => {
    const output = await complete(llm, { ...hot, topP: 1, topK: 3, maxTokens: 16, logprobs: 0 });
    const ranks = output.tokenIds.map((id, i) => output.logprobs![i]!.get(id)!.rank);
    expect(Math.max(...ranks)).toBeLessThanOrEqual(3);
    expect(Math.max(...ranks)).toBeGreaterThan(1);
  });
});

describe("penalties", () => {
  const text = "The dog saw a dog and the dog saw the dog and the dog";
  const cases: readonly SamplingParams[] = [
    { repetitionPenalty: 1.8 },
    { repetitionPenalty: 0.5 },
    { presencePenalty: 2 },
    { frequencyPenalty: 2 },
    { frequencyPenalty: -2 },
    { repetitionPenalty: 1.3, presencePenalty: -0.7, frequencyPenalty: 1.1 },
  ];

  test.each(cases.map((params) => [params] as const))(
    "%o: each greedy choice is that of the penalised logits",
    async (params) => {
      const { repetitionPenalty = 1, presencePenalty = 0, frequencyPenalty = 0 } = params;
      const [result] = await llm.generate(text, { ...GREEDY, ...params });
      const { tokenIds } = only([result!]);
      const rows = await logitsOf(result!.promptTokenIds, tokenIds);
      for (const [i, logits] of rows.entries()) {
        const drawn = tokenIds.slice(0, i);
        for (const id of new Set([...result!.promptTokenIds, ...drawn]))
          logits[id]! *= logits[id]! > 0 ? 1 / repetitionPenalty : repetitionPenalty;
        for (const id of new Set(drawn)) {
          const count = drawn.filter((other) => other === id).length;
          logits[id]! -= presencePenalty + frequencyPenalty * count;
        }
        expect([i, tokenIds[i]]).toEqual([i, argmax(logits)]);
      }
    },
  );

  test("a frequency penalty repeats less, a negative one more", async () => {
    const distinct = async (frequencyPenalty: number) => {
      const { tokenIds } = await complete(
        llm,
        { temperature: 0, maxTokens: 24, ignoreEos: true, frequencyPenalty },
        text,
      );
      return new Set(tokenIds).size;
    };
    const [less, plain, more] = [await distinct(2), await distinct(0), await distinct(-2)];
    expect(less).toBeGreaterThan(plain);
    expect(more).toBeLessThan(plain);
  });
});

describe("logit bias and bans", () => {
  test("+100 forces a token, -100 keeps the likeliest from being drawn", async () => {
    expect((await complete(llm, { ...GREEDY, logitBias: { 678: 100 } })).tokenIds).toEqual(
      new Array(12).fill(678),
    );
    const [, second] = (
      await complete(llm, { temperature: 0, maxTokens: 1, logprobs: 2 })
    ).logprobs![0]!.keys();
    const output = await complete(llm, { temperature: 0, maxTokens: 1, logitBias: { 11: -100 } });
    expect(output.tokenIds).toEqual([second!]);
  });

  test("only allowed tokens are drawn, the likeliest of them when greedy", async () => {
    const allowedTokenIds = [258, 385, 431, 678, 2000];
    const sampled = await complete(llm, { seed: 1, temperature: 2, topK: 0, allowedTokenIds });
    expect(sampled.tokenIds.every((id) => allowedTokenIds.includes(id))).toBe(true);
    const [result] = await llm.generate(PROMPT, { ...GREEDY, allowedTokenIds });
    const { tokenIds } = only([result!]);
    for (const [i, logits] of (await logitsOf(result!.promptTokenIds, tokenIds)).entries()) {
      const allowed = Float32Array.from(logits, (logit, id) =>
        allowedTokenIds.includes(id) ? logit : -Infinity,
      );
      expect(tokenIds[i]).toBe(argmax(allowed));
    }
  });
});

describe("bad words", () => {
  const story: SamplingParams = { temperature: 0, maxTokens: 16 };

  test.each(["Lily", "girl", "little"])("%s does not appear, nor after a space", async (word) => {
    expect((await complete(llm, story)).text).toContain(word);
    expect((await complete(llm, { ...story, badWords: [word] })).text).not.toContain(word);
  });

  test("of a word of several tokens only the last is banned, and only after the others", async () => {
    const { text } = await complete(llm, { ...story, badWords: ["named Lily"] });
    expect(text).toContain(" named ");
    expect(text).not.toContain("named Lily");
  });

  test("the word may begin in the prompt", async () => {
    const params = { temperature: 0, maxTokens: 1 };
    expect((await complete(llm, params, "Once upon a")).text).toBe(" time");
    expect((await complete(llm, { ...params, badWords: ["upon a time"] }, "Once upon a")).text).not.toBe(
      " time",
    );
  });

  test("several words at once, sampled", async () => {
    const badWords = ["dog", "cat", "bird", "fish"];
    const [result] = await llm.generate("Tom had a pet", { seed: 2, n: 8, maxTokens: 8, badWords });
    for (const { text } of result!.outputs)
      for (const word of badWords) expect(text).not.toContain(` ${word}`);
  });

  test("too many tokens of bad words are refused", async () => {
    const badWords = Array.from({ length: 256 }, (_, i) => `${i} ${"zyx ".repeat(10)}`);
    expect(await rejection(complete(llm, { badWords }))).toMatchObject({ param: "badWords" });
  });
});

describe("log-probabilities", () => {
  test("are those of the raw logits, whatever sampling does to them", async () => {
    const params = { seed: 3, temperature: 1.5, maxTokens: 10, frequencyPenalty: 1, logitBias: { 678: 5 } };
    const [result] = await llm.generate(PROMPT, { ...params, logprobs: 4 });
    const { tokenIds, logprobs, cumulativeLogprob } = only([result!]);
    expect(logprobs).toHaveLength(tokenIds.length);
    let sum = 0;
    for (const [i, logits] of (await logitsOf(result!.promptTokenIds, tokenIds)).entries()) {
      const expected = logSoftmax(logits);
      const entries = [...logprobs![i]!];
      const [chosen, { logprob, rank, decodedToken }] = entries[0]!;
      expect([chosen, decodedToken]).toEqual([tokenIds[i]!, llm.tokenizer!.decode([tokenIds[i]!])]);
      expect(rank).toBe(expected.filter((value) => value > expected[chosen]!).length + 1);
      sum += logprob;
      for (const [id, entry] of entries) expect(entry.logprob).toBeCloseTo(expected[id]!, 4);
      const top = entries.filter(([, entry]) => entry.rank <= 4).toSorted(([, a], [, b]) => a.rank - b.rank);
      expect(top.map(([, entry]) => entry.rank)).toEqual([1, 2, 3, 4]);
      const values = top.map(([, entry]) => entry.logprob);
      expect(values).toEqual(values.toSorted((a, b) => b - a));
      expect(entries).toHaveLength(rank <= 4 ? 4 : 5);
    }
    expect(cumulativeLogprob!).toBeCloseTo(sum, 5);
  });

  test("0 gives the drawn token alone", async () => {
    const { logprobs, tokenIds } = await complete(llm, { ...GREEDY, logprobs: 0 });
    expect(logprobs!.map((position) => [...position.keys()])).toEqual(tokenIds.map((id) => [id]));
  });

  test("asking does not change the tokens, in a batch with a request that does not ask either", async () => {
    const params = { seed: 8, maxTokens: 8 };
    const [asked, plain] = await llm.generate([PROMPT, PROMPT], [{ ...params, logprobs: 5 }, params]);
    expect(asked!.outputs[0]!.tokenIds).toEqual(plain!.outputs[0]!.tokenIds);
    expect(plain!.outputs[0]).not.toHaveProperty("logprobs");
  });

  test("of the prompt: none for the first token, those of the logits for the others", async () => {
    const [result] = await llm.generate("Once upon a time there was", {
      ...GREEDY,
      maxTokens: 1,
      promptLogprobs: 2,
    });
    const { promptTokenIds, promptLogprobs } = result!;
    expect(promptLogprobs).toHaveLength(promptTokenIds.length);
    expect(promptLogprobs![0]).toBeNull();
    const rows = await logitsOf(promptTokenIds.slice(0, 1), promptTokenIds.slice(1));
    for (const [i, logits] of rows.entries()) {
      const id = promptTokenIds[i + 1]!;
      const position = promptLogprobs![i + 1]!;
      expect([...position.keys()][0]).toBe(id);
      expect(position.get(id)!.logprob).toBeCloseTo(logSoftmax(logits)[id]!, 4);
      expect(position.size).toBe(position.get(id)!.rank <= 2 ? 2 : 3);
    }
  });
});

describe("logits", () => {
  test("one row of the vocabulary a prompt token; the last predicts the next", async () => {
    const prompt = llm.tokenizer!.encode(PROMPT);
    const logits = await llm.logits(prompt);
    expect(logits).toHaveLength(prompt.length * llm.modelConfig.vocabSize);
    expect(argmax(logits.slice(-llm.modelConfig.vocabSize))).toBe(11);
    expect(logits.every(Number.isFinite)).toBe(true);
  });

  test("invalid prompts are refused", async () => {
    expect(await rejection(llm.logits([]))).toMatchObject({ code: "empty_prompt" });
    expect(await rejection(llm.logits([4096]))).toMatchObject({ code: "invalid_token_id" });
    expect(await rejection(llm.logits(new Array(1025).fill(1)))).toMatchObject({
      code: "context_length_exceeded",
    });
  });
});
