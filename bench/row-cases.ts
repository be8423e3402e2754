import type { CaseMemory, KernelCase } from "./kernel-case.ts";

/** Tokens of the largest step. */
const TOKENS = 16384;
const VOCABULARY = 151936;
const BYTES = 2;
const NORM_EPS = 1e-6;

/** Ops that take a row at a time and are bound by reading and writing it. */
export function rowCases(
  memory: CaseMemory,
  width: number,
  tokens = TOKENS,
  vocabulary = VOCABULARY,
): KernelCase[] {
  const { backend } = memory;
  const bytes = 2 * tokens * width * BYTES;
  const operands = memory.coldSets(bytes);
  const shared = { group: "rows", bytes, flops: 0, operands };
  const outputs = () =>
    Array.from({ length: operands }, () => memory.empty(backend.activationDtype, tokens, width));
  return [
    {
      ...{ ...shared, name: `RMS norm, ${tokens} × ${width}` },
      prepare: () => {
        const inputs = Array.from({ length: operands }, () => memory.random(tokens, width));
        const [results, weight] = [outputs(), memory.ones(width)];
        return (i) => backend.rmsNorm(results[i % operands]!, inputs[i % operands]!, weight, NORM_EPS);
      },
    },
    {
      ...{ ...shared, name: `embedding, ${tokens} × ${width}` },
      prepare: () => {
        const table = memory.random(vocabulary, width);
        const results = outputs();
        const ids = results.map((_, set) =>
          memory.ints(
            Int32Array.from({ length: tokens }, (_, i) => ((i + set * tokens) * 48271) % vocabulary),
          ),
        );
        return (i) => backend.embedding(results[i % operands]!, table, ids[i % operands]!);
      },
    },
  ];
}
