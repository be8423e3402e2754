import type { LinearFusion } from "../src/backend/backend.ts";
import type { Tensor } from "../src/backend/tensor.ts";
import { denseWeight } from "../src/backend/weight.ts";
import type { ModelConfig } from "../src/models/config.ts";
import type { CaseMemory, KernelCase } from "./kernel-case.ts";

/** Tokens of a batch: what decode steps and small prompts have. */
export const TOKEN_COUNTS = [1, 4, 8, 16, 64, 128, 256];

const NORM_EPS = 1e-6;

/** A product of a layer, with what the layer fuses with it. */
interface Product {
  readonly name: string;
  readonly outFeatures: number;
  readonly inFeatures: number;
  readonly norm?: true;
  readonly gated?: true;
  /** The product is added to the residual stream. */
  readonly addTo?: true;
}

/**
 * The four products of a layer, each by itself over the weights of many layers, and in their order as a layer runs them
 * without attention. Weights come from memory; activations have just been written and are in cache.
 */
export function linearCases(
  memory: CaseMemory,
  modelName: string,
  model: ModelConfig,
  tokenCounts = TOKEN_COUNTS,
): KernelCase[] {
  const { backend } = memory;
  const products = productsOf(model);
  const layerBytes = products.reduce((total, product) => total + bytesOf(product), 0);
  const layers = Math.min(model.numLayers, memory.coldSets(layerBytes));
  const weights = new Map<Product, readonly Tensor[]>();
  const weightsOf = (product: Product): readonly Tensor[] => {
    const { outFeatures, inFeatures } = product;
    const known = weights.get(product);
    const all = known ?? Array.from({ length: layers }, () => memory.random(outFeatures, inFeatures));
    weights.set(product, all);
    return all;
  };
  const launcher = (product: Product, out: Tensor, x: Tensor) => {
    const all = weightsOf(product);
    const { inFeatures, norm, gated, addTo } = product;
    const fusion: LinearFusion = {
      norm: norm && { weight: memory.ones(inFeatures), eps: NORM_EPS },
      activation: gated && { kind: "silu", gated },
      addTo: addTo && out,
    };
    return (i: number) => backend.linear(out, x, denseWeight(all[i % layers]!), fusion);
  };
  /** The tuner chooses among algorithms for the weights that it has seen. */
  const tuned = (tokens: number, launch: (i: number) => void) => {
    for (let i = 0; i < layers; i++) launch(i);
    backend.tuneLinear?.([tokens]);
    return launch;
  };
  const alone = (product: Product, tokens: number) =>
    launcher(product, memory.random(tokens, outWidth(product)), memory.random(tokens, product.inFeatures));
  const layer = (tokens: number) => {
    const residual = memory.random(tokens, model.hiddenSize);
    const [qkv, output, gateUp, down] = products as [Product, Product, Product, Product];
    const activated = memory.random(tokens, down.inFeatures);
    const launches = [
      launcher(qkv, memory.random(tokens, qkv.outFeatures), residual),
      launcher(output, residual, memory.random(tokens, output.inFeatures)),
      launcher(gateUp, activated, residual),
      launcher(down, residual, activated),
    ];
    return (i: number) => {
      for (const launch of launches) launch(i);
    };
  };

  const shared = { group: `linear ${modelName}`, operands: layers };
  return tokenCounts.flatMap((tokens): KernelCase[] => [
    ...products.map((product) => ({
      ...{ ...shared, name: `${product.name}, ${tokens} tokens` },
      // Two bytes a weight, and as many operations for each token.
      ...{ bytes: bytesOf(product), flops: tokens * bytesOf(product) },
      prepare: () => tuned(tokens, alone(product, tokens)),
    })),
    {
      ...{ ...shared, name: `layer, ${tokens} tokens` },
      ...{ bytes: layerBytes, flops: tokens * layerBytes },
      prepare: () => tuned(tokens, layer(tokens)),
    },
  ]);
}

function productsOf(model: ModelConfig): readonly Product[] {
  const { hiddenSize, intermediateSize, numHeads, numKvHeads, headDim } = model;
  const heads = (numHeads + 2 * numKvHeads) * headDim;
  const attended = numHeads * headDim;
  return [
    { name: "QKV", outFeatures: heads, inFeatures: hiddenSize, norm: true },
    { name: "output", outFeatures: hiddenSize, inFeatures: attended, addTo: true },
    { name: "gate, up", outFeatures: 2 * intermediateSize, inFeatures: hiddenSize, norm: true, gated: true },
    { name: "down", outFeatures: hiddenSize, inFeatures: intermediateSize, addTo: true },
  ];
}

function bytesOf({ outFeatures, inFeatures }: Product): number {
  return 2 * outFeatures * inFeatures;
}

function outWidth({ outFeatures, gated }: Product): number {
  return gated ? outFeatures / 2 : outFeatures;
}
