import type { LinearFusion } from "../src/backend/backend.ts";
import type { Tensor } from "../src/backend/tensor.ts";
import {
  denseWeight,
  type Fp8Weight,
  factorsOf,
  SUPERBLOCK,
  type SuperblockWeight,
  type Weight,
} from "../src/backend/weight.ts";
import type { ModelConfig } from "../src/models/config.ts";
import type { CaseMemory, KernelCase } from "./kernel-case.ts";

/** Tokens of a batch: what decode steps and small prompts have. */
export const TOKEN_COUNTS = [1, 4, 8, 16, 64, 128, 256];

const NORM_EPS = 1e-6;
/** Tokens up to which activations stay in 16 bits. */
const FEW_TOKENS = 8;

/** A way to store a weight: bits of an element, of codes and of what belongs to a group of them, and a weight of zeros. */
export interface StoredForm {
  readonly name: string;
  readonly bits: number;
  /** Of products of more than a few tokens; see `KernelCase`. */
  readonly speed?: number;
  make(memory: CaseMemory, outFeatures: number, inFeatures: number): Weight;
}

const GROUP = 128;
const FLOATS: StoredForm = {
  name: "",
  bits: 16,
  make: (memory, n, k) => denseWeight(memory.random(n, k)),
};
/** Quantised weights: FP8 with a scale a channel and a block, and integers in groups of 128 with zero points. */
export const QUANTISED_FORMS: readonly StoredForm[] = [
  {
    name: "fp8",
    bits: 8,
    speed: 2,
    make: (memory, n, k) => fp8(memory, n, k, { blockRows: 1, blockColumns: k }),
  },
  {
    name: "fp8 blocks",
    bits: 8,
    make: (memory, n, k) => fp8(memory, n, k, { blockRows: GROUP, blockColumns: GROUP }),
  },
  { name: "4 bits", bits: 4 + 24 / GROUP, make: (memory, n, k) => grouped(memory, n, k, 4) },
  { name: "8 bits", bits: 8 + 24 / GROUP, make: (memory, n, k) => grouped(memory, n, k, 8) },
  superblocksOf("Q4_K", { bits: 4, groupSize: 32, minima: true }),
  superblocksOf("Q6_K", { bits: 8, groupSize: 16, minima: false }),
];

function fp8(
  memory: CaseMemory,
  n: number,
  k: number,
  { blockRows, blockColumns }: Pick<Fp8Weight, "blockRows" | "blockColumns">,
): Weight {
  const scales = memory.zeros("float32", Math.ceil(n / blockRows), Math.ceil(k / blockColumns));
  const data = memory.zeros("float8_e4m3", n, k);
  return prepared(memory, { format: "fp8", shape: [n, k], data, scales, blockRows, blockColumns });
}

function grouped(memory: CaseMemory, n: number, k: number, bits: 4 | 8): Weight {
  const [data, groups] = [memory.zeros("uint8", n, (k * bits) / 8), k / GROUP];
  const [scales, zeros] = [memory.zeros("float16", n, groups), memory.zeros("uint8", n, groups)];
  return prepared(memory, { format: "grouped", shape: [n, k], bits, groupSize: GROUP, data, scales, zeros });
}

function superblocksOf(
  name: string,
  form: Pick<SuperblockWeight, "bits" | "groupSize" | "minima">,
): StoredForm {
  const { bits, groupSize } = form;
  const factors = factorsOf(form);
  return {
    ...{ name, bits: bits + factors * (8 / groupSize + 16 / SUPERBLOCK) },
    make: (memory, n, k) =>
      prepared(memory, {
        ...{ format: "superblocks", shape: [n, k], ...form },
        data: memory.zeros("uint8", n, (k * bits) / 8),
        steps: memory.zeros("uint8", n, k / groupSize, factors),
        units: memory.zeros("float16", n, k / SUPERBLOCK, factors),
      }),
  };
}

function prepared({ backend }: CaseMemory, weight: Weight): Weight {
  return backend.prepareWeight?.(weight) ?? weight;
}

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
  form = FLOATS,
): KernelCase[] {
  const { backend } = memory;
  const products = productsOf(model);
  const bytesOf = (product: Product) => (elementsOf(product) * form.bits) / 8;
  const layerBytes = products.reduce((total, product) => total + bytesOf(product), 0);
  const layerElements = products.reduce((total, product) => total + elementsOf(product), 0);
  const layers = Math.min(model.numLayers, memory.coldSets(layerBytes));
  const weights = new Map<Product, readonly Weight[]>();
  const weightsOf = (product: Product): readonly Weight[] => {
    const { outFeatures, inFeatures } = product;
    const known = weights.get(product);
    const all = known ?? Array.from({ length: layers }, () => form.make(memory, outFeatures, inFeatures));
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
    return (i: number) => backend.linear(out, x, all[i % layers]!, fusion);
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

  const group = `linear ${modelName}${form.name && `, ${form.name}`}`;
  return tokenCounts.flatMap((tokens): KernelCase[] => {
    const speed = tokens > FEW_TOKENS ? (form.speed ?? 1) : 1;
    const shared = { group, operands: layers, speed };
    return [
      ...products.map((product) => ({
        ...{ ...shared, name: `${product.name}, ${tokens} tokens` },
        ...{ bytes: bytesOf(product), flops: 2 * tokens * elementsOf(product) },
        prepare: () => tuned(tokens, alone(product, tokens)),
      })),
      {
        ...{ ...shared, name: `layer, ${tokens} tokens` },
        ...{ bytes: layerBytes, flops: 2 * tokens * layerElements },
        prepare: () => tuned(tokens, layer(tokens)),
      },
    ];
  });
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

function elementsOf({ outFeatures, inFeatures }: Product): number {
  return outFeatures * inFeatures;
}

function outWidth({ outFeatures, gated }: Product): number {
  return gated ? outFeatures / 2 : outFeatures;
}
