import type { ExpertSpec, ExpertWeights } from "../src/backend/experts.ts";
import { denseWeight, type Weight } from "../src/backend/weight.ts";
import { SplitMix64 } from "../src/base/random.ts";
import type { ModelConfig } from "../src/models/config.ts";
import type { CaseMemory, KernelCase } from "./kernel-case.ts";

/** Tokens of a batch: decode steps, and prompts. */
const TOKEN_COUNTS = [1, 4, 8, 16, 64, 256, 1024, 4096];
/** Layers whose experts are in memory: those of one token in each are more than any cache holds. */
const LAYERS = 8;

/**
 * A layer's experts, from the router's logits to the residual stream, with random choices. What must be read are the experts that
 * some token has, once.
 */
export function expertCases(
  memory: CaseMemory,
  modelName: string,
  { experts, hiddenSize, activation, quantisation }: ModelConfig,
  tokenCounts = TOKEN_COUNTS,
): KernelCase[] {
  if (experts === undefined) return [];
  const { count, perToken, intermediateSize } = experts;
  const spec: ExpertSpec = { ...experts, activation: experts.limitedSwiglu ?? { kind: activation } };
  const isMxfp4 = quantisation?.declared?.kind === "mxfp4";
  const weights = 3 * hiddenSize * intermediateSize;
  const expertBytes = weights * (isMxfp4 ? 17 / 32 : 2);
  const matrix = (n: number, k: number): Weight => {
    if (!isMxfp4) return denseWeight(memory.random(n, k));
    // Scales of random bytes would give infinities, and those of any one value read as fast as others.
    const scales = memory.empty("uint8", n, k / 32);
    memory.backend.fill(scales, 120);
    return { format: "mxfp4", shape: [n, k], data: memory.bytes(n, k / 2), scales };
  };
  let made: readonly ExpertWeights[] | undefined;
  const layers = () => {
    made ??= Array.from({ length: LAYERS }, () => ({
      count,
      gateUp: matrix(count * 2 * intermediateSize, hiddenSize),
      down: matrix(count * hiddenSize, intermediateSize),
    }));
    return made;
  };
  return tokenCounts.map((tokens) => {
    // Made only for cases that are measured: those of long prompts take a second.
    let chosen: readonly Float32Array[] | undefined;
    const choices = () => {
      chosen ??= Array.from({ length: LAYERS }, (_, layer) => randomLogits(tokens, count, layer));
      return chosen;
    };
    return {
      ...{ group: `experts ${modelName}`, name: `${tokens} tokens`, operands: LAYERS },
      get bytes() {
        const active = choices().map((logits) => activeExperts(logits, count, perToken));
        return (expertBytes * active.reduce((sum, each) => sum + each, 0)) / LAYERS;
      },
      flops: tokens * perToken * 2 * weights,
      prepare: () => {
        const { backend } = memory;
        const residual = memory.random(tokens, hiddenSize);
        const norm = { weight: memory.ones(hiddenSize), eps: 1e-6 };
        const logits = choices().map((values) => {
          const tensor = memory.empty("float32", tokens, count);
          backend.upload(tensor, values);
          return tensor;
        });
        const all = layers();
        return (i) => {
          const layer = i % LAYERS;
          const fusion = { norm, addTo: residual };
          backend.experts(residual, residual, logits[layer]!, all[layer]!, spec, fusion);
        };
      },
    };
  });
}

function randomLogits(tokens: number, count: number, layer: number): Float32Array {
  const random = new SplitMix64(BigInt(1000 * tokens + layer));
  return Float32Array.from({ length: tokens * count }, () => Number(random.next() >> 40n) / 2 ** 24);
}

/** How many of the experts some token has. */
function activeExperts(logits: Float32Array, count: number, perToken: number): number {
  const active = new Set<number>();
  for (let start = 0; start < logits.length; start += count) {
    const row = logits.subarray(start, start + count);
    const order = Array.from(row.keys()).sort((a, b) => row[b]! - row[a]!);
    for (const expert of order.slice(0, perToken)) active.add(expert);
  }
  return active.size;
}
