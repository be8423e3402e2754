import type { Tolerance } from "../model/suite.ts";

/** 16-bit weights, activations and cache against the float32 reference. */
export const BFLOAT16: Tolerance = {
  ...{ stds: 0.1, relative: 2e-2, cosine: 0.9999, logprob: 0.1, greedyGap: 0.1 },
};
export const FLOAT16: Tolerance = {
  ...{ stds: 0.05, relative: 1e-2, cosine: 0.9999, logprob: 0.05, greedyGap: 0.1 },
};
