import { setDefaultTimeout } from "bun:test";
import { FAMILY_FIXTURES, FIXTURES, GGUF_FIXTURES, QUANTISED_FIXTURES } from "../model/fixtures.ts";
import { referenceSuite, type Tolerance, type Variant } from "../model/suite.ts";
import { describeGpu } from "./gpu.ts";
import { BFLOAT16, FLOAT16 } from "./tolerances.ts";

setDefaultTimeout(300_000);

function variants(dtype: "bfloat16" | "float16"): Variant[] {
  const options = { device: "cuda", dtype, gpuMemoryUtilization: 0.2 } as const;
  return [
    { name: `${dtype}, whole prompts`, options, maxPrompt: 600 },
    { name: `${dtype}, eager`, options: { ...options, enforceEager: true }, maxPrompt: 600 },
    { name: `${dtype}, chunks of 64`, options: { ...options, maxNumBatchedTokens: 64 }, maxPrompt: 600 },
    { name: `${dtype}, chunks of 7`, options: { ...options, maxNumBatchedTokens: 7 }, maxPrompt: 257 },
    { name: `${dtype}, blocks of 64`, options: { ...options, blockSize: 64 }, maxPrompt: 257 },
  ];
}

/** The roundings of tests/model/float8-cache.test.ts and those of bfloat16. */
const FLOAT8: Tolerance = { stds: 0.35, relative: 0.075, cosine: 0.997, logprob: 0.5, greedyGap: 0.5 };

function float8Variants(): Variant[] {
  const options = {
    device: "cuda",
    dtype: "bfloat16",
    kvCacheDtype: "fp8",
    gpuMemoryUtilization: 0.2,
  } as const;
  return [
    { name: "a cache in eight bits", options, maxPrompt: 600 },
    {
      name: "a cache in eight bits, chunks of 64",
      options: { ...options, maxNumBatchedTokens: 64 },
      maxPrompt: 600,
    },
  ];
}

describeGpu("reference models on the GPU", () => {
  for (const fixture of [...FIXTURES, ...GGUF_FIXTURES]) {
    referenceSuite(fixture, variants("bfloat16"), BFLOAT16);
    referenceSuite(fixture, variants("float16"), FLOAT16);
    referenceSuite(fixture, float8Variants(), FLOAT8);
  }
});

describeGpu("other families' models on the GPU", () => {
  const some = (dtype: "bfloat16" | "float16") =>
    variants(dtype).filter(({ name }) => /whole|chunks of 7/.test(name));
  for (const fixture of FAMILY_FIXTURES) {
    referenceSuite(fixture, some("bfloat16"), BFLOAT16);
    referenceSuite(fixture, some("float16"), FLOAT16);
  }
});

describeGpu("quantised models on the GPU", () => {
  const some = (dtype: "bfloat16" | "float16") =>
    variants(dtype).filter(({ name }) => /whole|chunks of 7/.test(name));
  for (const fixture of QUANTISED_FIXTURES) {
    referenceSuite(fixture, some("bfloat16"), BFLOAT16);
    referenceSuite(fixture, some("float16"), FLOAT16);
  }
});
