/** In place of a token that could not be drawn. */
export const NotDrawn = {
  /** The logits hold a NaN. */
  notANumber: -1,
  /** Every logit is −∞: nothing is allowed. */
  nothingAllowed: -2,
} as const;
