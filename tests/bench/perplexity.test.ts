import { expect, setDefaultTimeout, test } from "bun:test";
import { measure, readStories } from "../../bench/perplexity.ts";

setDefaultTimeout(300_000);

test("quantised weights cost little: 8 bits less than 1% of perplexity, 4 bits less than 5%", async () => {
  const stories = readStories().slice(0, 1);
  const of = async (scheme: Omit<Parameters<typeof measure>[0], "name">) =>
    (await measure({ name: "", ...scheme }, { device: "cpu" }, stories)).perplexity;
  const plain = await of({});
  expect(plain).toBeGreaterThan(10);
  expect(plain).toBeLessThan(30);
  const cost = async (scheme: Parameters<typeof of>[0]) => Math.abs((await of(scheme)) / plain - 1);
  expect(await cost({ quantization: "fp8" })).toBeLessThan(0.01);
  expect(await cost({ rounding: { bits: 8, groupSize: 128, symmetric: true } })).toBeLessThan(0.01);
  expect(await cost({ rounding: { bits: 4, groupSize: 128, symmetric: false } })).toBeLessThan(0.05);
});
