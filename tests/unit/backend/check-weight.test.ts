import { expect, setDefaultTimeout, test } from "bun:test";
import type { Backend } from "../../../src/backend/backend.ts";
import { checkLinear } from "../../../src/backend/checks.ts";
import { Tensor } from "../../../src/backend/tensor.ts";
import type { Weight } from "../../../src/backend/weight.ts";
import type { DType } from "../../../src/base/dtype.ts";
import { InvariantError } from "../../../src/base/errors.ts";
import { acceptedOf, callsOf, type Refusals } from "../../contract/refusals.ts";

setDefaultTimeout(300_000);

const [T, N, K] = [3, 32, 64];

/** Products by quantised weights: all that is not as `Weight` says is refused. */
const TABLES: readonly Refusals[] = [
  {
    ...{ op: "linear", title: "by fp8" },
    operands: {
      ...{ out: ["bfloat16", T, N], x: ["bfloat16", T, K] },
      ...{ data: ["float8_e4m3", N, K], scales: ["float32", 4, 3] },
    },
    dtypes: { out: ["float32"] },
    scalars: { n: N, k: K, blockRows: 8, blockColumns: 24 },
    apart: { out: ["x", "data", "scales"] },
    wrong: [{ blockRows: 4 }, { blockColumns: 32 }, { n: N + 1 }, { k: K - 1 }],
    run: (_, { out, x, data, scales }, { n, k, blockRows, blockColumns }) => {
      const form = { blockRows: blockRows!, blockColumns: blockColumns! };
      const weight = { format: "fp8", shape: [n!, k!], data: data!, scales: scales!, ...form } as const;
      checkLinear("bfloat16", out!, x!, weight, {});
    },
  },
  ...([4, 8] as const).map(
    (bits): Refusals => ({
      ...{ op: "linear", title: `by ${bits} bits` },
      operands: {
        ...{ out: ["bfloat16", T, N], x: ["bfloat16", T, K], data: ["uint8", N, (K * bits) / 8] },
        ...{ scales: ["float16", N, 2], zeros: ["uint8", N, 2], permutation: ["int32", K] },
      },
      dtypes: { out: ["float32"], scales: ["bfloat16"] },
      scalars: { n: N, k: K, bits, groupSize: 32 },
      apart: { out: ["x", "data", "scales", "zeros", "permutation"] },
      wrong: [{ bits: 12 - bits }, { groupSize: 16 }, { groupSize: 24 }, { groupSize: 8 }, { k: 2 * K }],
      run: (_, { out, x, data, scales, zeros, permutation }, scalars) => {
        const { n, k, groupSize } = scalars;
        const form = { bits: scalars["bits"] as 4 | 8, groupSize: groupSize! };
        const tensors = { data: data!, scales: scales!, zeros: zeros!, permutation: permutation! };
        checkLinear("bfloat16", out!, x!, { format: "grouped", shape: [n!, k!], ...form, ...tensors }, {});
      },
    }),
  ),
  {
    ...{ op: "linear", title: "by superblocks" },
    operands: {
      ...{ out: ["bfloat16", T, N], x: ["bfloat16", T, 512], data: ["uint8", N, 256] },
      ...{ steps: ["uint8", N, 16, 2], units: ["float16", N, 2, 2] },
    },
    dtypes: { out: ["float32"] },
    scalars: { n: N, k: 512, bits: 4, groupSize: 32, minima: 1 },
    apart: { out: ["x", "data", "steps", "units"] },
    wrong: [{ bits: 8 }, { groupSize: 16 }, { minima: 0 }, { n: N + 1 }, { k: 384 }],
    run: (_, { out, x, data, steps, units }, { n, k, bits, groupSize, minima }) => {
      const form = { bits: bits as 4 | 8, groupSize: groupSize as 16 | 32, minima: minima === 1 };
      const tensors = { data: data!, steps: steps!, units: units! };
      checkLinear("bfloat16", out!, x!, { format: "superblocks", shape: [n!, k!], ...form, ...tensors }, {});
    },
  },
];

test.each(TABLES.map((table) => [table.title!, table] as const))("%s", (_, table) => {
  const place = (words: Int32Array) =>
    new Tensor({ byteLength: words.byteLength, address: 0, dispose: () => {} }, "int32", [words.length]);
  const { right, wrong } = callsOf({} as Backend, table, place);
  right();
  expect(wrong.length).toBeGreaterThan(30);
  expect(acceptedOf("linear", wrong)).toEqual([]);
});

test("superblocks of a form that no type of blocks has are refused", () => {
  const tensor = (dtype: DType, ...shape: number[]) =>
    new Tensor({ byteLength: 2 ** 20, address: 0, dispose: () => {} }, dtype, shape);
  const accepted: unknown[] = [];
  for (const bits of [4, 8] as const)
    for (const groupSize of [16, 32] as const)
      for (const minima of [false, true]) {
        const factors = minima ? 2 : 1;
        const weight: Weight = {
          ...{ format: "superblocks", shape: [N, 512], bits, groupSize, minima },
          data: tensor("uint8", N, 64 * bits),
          steps: tensor("uint8", N, 512 / groupSize, factors),
          units: tensor("float16", N, 2, factors),
        };
        try {
          checkLinear("float32", tensor("float32", T, N), tensor("float32", T, 512), weight, {});
          accepted.push([bits, groupSize, minima]);
        } catch (error) {
          expect(error).toBeInstanceOf(InvariantError);
        }
      }
  expect(accepted).toEqual([
    [4, 32, true],
    [8, 16, false],
    [8, 16, true],
    [8, 32, true],
  ]);
});
