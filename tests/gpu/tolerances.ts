import type { Tolerance } from "../model/suite.ts";

/** 16-bit weights, activations and cache against the float32 reference. */
export const BFLOAT16: Tolerance = {
  ...{ stds: 0.1, relative: 2e-2, cosine: 0.9999, logprob: 0.1, greedyGap: 0.1 },
};
export const FLOAT16: Tolerance = {
  ...{ stds: 0.05, relative: 1e-2, cosine: 0.9999, logprob: 0.05, greedyGap: 0.1 },
};
/** Roundings of the router's input move every expert's share; the fixtures leave no doubt which experts a token has. */
export const EXPERTS_BFLOAT16: Tolerance = {
  ...{ stds: 0.3, relative: 0.06, cosine: 0.998, logprob: 0.3, greedyGap: 0.3 },
};
/** A cache in eight bits: the roundings of tests/model/float8-cache.test.ts and those of bfloat16. */
export const FLOAT8: Tolerance = {
  ...{ stds: 0.35, relative: 0.075, cosine: 0.997, logprob: 0.5, greedyGap: 0.5 },
};
