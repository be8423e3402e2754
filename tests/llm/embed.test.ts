import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { InvalidRequestError } from "../../src/base/errors.ts";
import { LLM } from "../../src/llm/llm.ts";

setDefaultTimeout(300_000);

const TEXTS = ["Once upon a time there was a little dog who liked to run in the park.", "The sky is blue."];

let llm: LLM;
beforeAll(async () => {
  llm = await LLM.create(undefined, { device: "cpu", kvCacheMemoryBytes: 2 ** 24 });
});
afterAll(() => llm.dispose());

/** A vector of the embedded model's file, which stores it in float32 or bfloat16. */
function storedVector(name: string): Float64Array {
  const file = readFileSync(join(import.meta.dir, "../../models/tiny-stories/model.safetensors"));
  const headerSize = Number(file.readBigUInt64LE(0));
  const {
    dtype,
    data_offsets: [start, end],
  } = JSON.parse(file.toString("utf8", 8, 8 + headerSize))[name];
  const bytes = file.subarray(8 + headerSize + start, 8 + headerSize + end);
  if (dtype === "F32")
    return Float64Array.from({ length: bytes.length / 4 }, (_, i) => bytes.readFloatLE(4 * i));
  const half = Buffer.alloc(4);
  return Float64Array.from({ length: bytes.length / 2 }, (_, i) => {
    half.writeUInt16LE(bytes.readUInt16LE(2 * i), 2);
    return half.readFloatLE(0);
  });
}

function expectClose(actual: Float32Array, expected: Float32Array): void {
  expect(actual.length).toBe(expected.length);
  const differences = Array.from(actual, (value, i) => Math.abs(value - expected[i]!));
  expect(Math.max(...differences)).toBeLessThan(1e-5);
}

test("the last token's vector is its state after the final norm", async () => {
  const [vector] = await llm.embed(TEXTS[0]!, { normalize: false });
  const weight = storedVector("model.norm.weight");
  expect(vector!.length).toBe(llm.modelConfig.hiddenSize);
  // Before the weight, the norm makes the mean of squares 1.
  const squares = Array.from(vector!, (value, i) => (value / weight[i]!) ** 2);
  expect(squares.reduce((sum, value) => sum + value, 0) / squares.length).toBeCloseTo(1, 3);
});

test("the mean is that of the vectors of all beginnings", async () => {
  const tokens = llm.tokenizer!.encode(TEXTS[1]!);
  const prompts = tokens.map((_, i) => ({ promptTokenIds: tokens.slice(0, i + 1) }));
  const lasts = await llm.embed(prompts, { normalize: false });
  const [mean] = await llm.embed({ promptTokenIds: tokens }, { pooling: "mean", normalize: false });
  const expected = mean!.map((_, i) => lasts.reduce((sum, last) => sum + last[i]!, 0) / lasts.length);
  expectClose(mean!, expected);
});

test("chunks of a prompt and cached prefixes change nothing", async () => {
  const options = {
    device: "cpu",
    kvCacheMemoryBytes: 2 ** 24,
    maxNumBatchedTokens: 8,
    maxNumSeqs: 4,
  } as const;
  const chunked = await LLM.create(undefined, options);
  await chunked.generate(TEXTS[0]!, { maxTokens: 1 });
  for (const pooling of ["last", "mean"] as const) {
    const whole = await llm.embed(TEXTS, { pooling });
    const parts = await chunked.embed(TEXTS, { pooling });
    for (const [i, vector] of parts.entries()) expectClose(vector, whole[i]!);
  }
  chunked.dispose();
});

test("vectors have length 1, cut or not", async () => {
  for (const dimensions of [undefined, 8]) {
    const [vector] = await llm.embed(TEXTS[0]!, dimensions === undefined ? {} : { dimensions });
    expect(vector!.length).toBe(dimensions ?? llm.modelConfig.hiddenSize);
    expect(Math.hypot(...vector!)).toBeCloseTo(1, 5);
  }
});

test.each([
  ["dimensions", { dimensions: 0 }],
  ["dimensions", { dimensions: 10 ** 6 }],
  ["pooling", { pooling: "max" as "mean" }],
])("a wrong %s is refused: %p", async (param, options) => {
  const error = await llm.embed(TEXTS[0]!, options).catch((cause: unknown) => cause);
  expect(error).toBeInstanceOf(InvalidRequestError);
  expect((error as InvalidRequestError).param).toBe(param);
});
