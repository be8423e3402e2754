import { dtypeSize } from "../../base/dtype.ts";
import type { LinearShape } from "../../cuda/linear-matmul.ts";

/** A shape as a key, of plans and of choices on disk. */
export function algorithmKey({
  tokens,
  inFeatures,
  outFeatures,
  inputType,
  outputType,
  bias,
  addTo,
}: LinearShape): string {
  const added = (bias ? 1 : 0) + (addTo ? 2 : 0);
  return `${tokens}/${inFeatures}/${outFeatures}/${inputType}/${outputType}/${added}`;
}

/**
 * The number of tokens whose algorithm `tokens` take: at most an eighth more, if they are many. Prompts have a new length each
 * time; a search takes longer than most products, and the first launch of a new kernel as long as a short prompt.
 */
export function searchedTokens(tokens: number): number {
  const step = tokens <= 8 ? 1 : Math.max(16, 2 ** (Math.ceil(Math.log2(tokens)) - 4));
  return Math.ceil(tokens / step) * step;
}

/** Bytes to which rows of all three matrices are aligned, at most 16. */
export function rowAlignment({ inFeatures, outFeatures, inputType, outputType }: LinearShape): number {
  let alignment = 16;
  for (const rowBytes of [inFeatures * dtypeSize(inputType), outFeatures * dtypeSize(outputType)]) {
    while (rowBytes % alignment !== 0) alignment /= 2;
  }
  return alignment;
}
