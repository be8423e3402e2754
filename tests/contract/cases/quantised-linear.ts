import type { LinearFusion } from "../../../src/backend/backend.ts";
import type { Case } from "../backend.contract.ts";
import { expectClose } from "../compare.ts";
import type { Fixture } from "../fixture.ts";
import {
  fp8Weight,
  type GroupedForm,
  groupedWeight,
  type QuantisedWeight,
  type SuperblockForm,
  superblockWeight,
} from "../quantised-weights.ts";
import * as reference from "../reference.ts";

/** Token counts of the kernels that a backend may have: one, a few, a tile, several. */
const TOKENS = [1, 2, 5, 8, 9, 16, 33, 64, 65, 200, 257] as const;
const EPS = 1e-6;

type Make = (fixture: Fixture, shape: readonly [n: number, k: number]) => QuantisedWeight;
type Shapes = readonly (readonly [n: number, k: number])[];

const grouped =
  (form: GroupedForm): Make =>
  (fixture, shape) =>
    groupedWeight(fixture, shape, form);

const wholeRows =
  (form: Omit<GroupedForm, "groupSize">): Make =>
  (fixture, [n, k]) =>
    groupedWeight(fixture, [n, k], { ...form, groupSize: k });

const superblocks =
  (form: SuperblockForm): Make =>
  (fixture, shape) =>
    superblockWeight(fixture, shape, form);

/** Each form, and shapes [N, K] that it can have: whole blocks and partial ones, fewer outputs than inputs and more. */
const FORMS: Readonly<Record<string, { readonly make: Make; readonly shapes: Shapes }>> = {
  "fp8, a scale a channel": {
    make: (fixture, [n, k]) => fp8Weight(fixture, [n, k], { blockRows: 1, blockColumns: k }),
    shapes: [
      [256, 512],
      [96, 1024],
      [50, 72],
      [1040, 128],
    ],
  },
  "fp8, blocks": {
    make: (fixture, shape) => fp8Weight(fixture, shape, { blockRows: 128, blockColumns: 128 }),
    shapes: [
      [256, 512],
      [192, 320],
      [128, 1024],
      [1088, 192],
    ],
  },
  "fp8, blocks of fewer rows": {
    make: (fixture, shape) => fp8Weight(fixture, shape, { blockRows: 64, blockColumns: 128 }),
    shapes: [
      [384, 256],
      [192, 384],
    ],
  },
  "4 bits, groups of 128": {
    make: grouped({ bits: 4, groupSize: 128 }),
    shapes: [
      [256, 512],
      [96, 1024],
      [1040, 128],
    ],
  },
  "4 bits, groups of 128 with zeros": {
    make: grouped({ bits: 4, groupSize: 128, zeros: true }),
    shapes: [
      [256, 512],
      [96, 1024],
      [72, 896],
    ],
  },
  "4 bits, groups of 64, bfloat16 scales": {
    make: grouped({ bits: 4, groupSize: 64, scaleDtype: "bfloat16" }),
    shapes: [[256, 320]],
  },
  "4 bits, groups of 32 with zeros, bfloat16 scales": {
    make: grouped({ bits: 4, groupSize: 32, zeros: true, scaleDtype: "bfloat16" }),
    shapes: [
      [72, 160],
      [256, 512],
    ],
  },
  "4 bits, whole rows": {
    make: wholeRows({ bits: 4 }),
    shapes: [
      [256, 512],
      [40, 96],
    ],
  },
  "4 bits, permuted": {
    make: grouped({ bits: 4, groupSize: 128, zeros: true, permuted: true }),
    shapes: [[256, 512]],
  },
  "4 bits, permuted, groups of 32": {
    make: grouped({ bits: 4, groupSize: 32, permuted: true }),
    shapes: [[136, 96]],
  },
  "8 bits, groups of 128": {
    make: grouped({ bits: 8, groupSize: 128 }),
    shapes: [
      [256, 512],
      [96, 384],
    ],
  },
  "8 bits, groups of 32 with zeros": {
    make: grouped({ bits: 8, groupSize: 32, zeros: true, scaleDtype: "bfloat16" }),
    shapes: [
      [72, 160],
      [256, 512],
    ],
  },
  "8 bits, whole rows": {
    make: wholeRows({ bits: 8, scaleDtype: "bfloat16" }),
    shapes: [
      [256, 512],
      [50, 80],
    ],
  },
  "8 bits, permuted": {
    make: grouped({ bits: 8, groupSize: 64, zeros: true, permuted: true }),
    shapes: [[256, 512]],
  },
  "superblocks of 4 bits, groups of 32": {
    make: superblocks({ bits: 4, groupSize: 32, minima: true }),
    shapes: [
      [256, 512],
      [50, 256],
      [16, 2304],
    ],
  },
  "superblocks of 6 bits, groups of 16": {
    make: superblocks({ bits: 8, groupSize: 16, minima: false }),
    shapes: [
      [256, 512],
      [50, 256],
      [16, 2304],
    ],
  },
  "superblocks of 6 bits, groups of 16 with minima": {
    make: superblocks({ bits: 8, groupSize: 16, minima: true }),
    shapes: [[72, 512]],
  },
  "superblocks of 6 bits, groups of 32 with minima": {
    make: superblocks({ bits: 8, groupSize: 32, minima: true }),
    shapes: [[72, 768]],
  },
};

/** Products by weights that are not floats, alone and with what may surround them. One weight serves for all token counts. */
export function quantisedLinearCases(addCase: Case): void {
  for (const [name, { make, shapes }] of Object.entries(FORMS)) {
    for (const [i, [n, k]] of shapes.entries()) {
      const counts = i === 0 ? TOKENS : [1, 3, 12, 17, 70];
      addCase("linear", `${name}: [${counts.join(" or ")}, ${k}] · [${n}, ${k}]ᵀ`, (fixture) => {
        const { weight, values } = make(fixture, [n, k]);
        const x = fixture.normals([counts.at(-1)!, k]);
        const expected = reference.linear(x.values, values, undefined, n, k);
        const prepared = fixture.prepared(weight);
        for (const m of counts) {
          for (const dtype of new Set(m === 1 ? [fixture.dtype, "float32" as const] : [fixture.dtype])) {
            const out = fixture.output(dtype, [m, n]);
            fixture.backend.linear(out, x.tensor.rows(0, m), prepared);
            // Dequantised weights may be rounded to the dtype of activations.
            const precision = { dtype: fixture.dtype, reduction: 2 * k, intermediates: 1 };
            const title = `${dtype} out of ${m} tokens`;
            expectClose(title, fixture.readFloats(out), reference.firstOf(expected, m * n), precision);
          }
        }
      });
    }
    surrounded(addCase, name, make, shapes[0]!, [1, 8, 13, 40]);
  }
  // Rows of more columns than warps take at once.
  const wide = grouped({ bits: 4, groupSize: 128 });
  for (const [n, k] of [
    [80, 4608],
    [48, 12_800],
  ] as const)
    surrounded(addCase, `4 bits, rows of ${k}`, wide, [n, k], [7, 13]);
}

function surrounded(
  addCase: Case,
  name: string,
  make: Make,
  [n, k]: readonly [number, number],
  tokens: readonly number[],
): void {
  const most = tokens.at(-1)!;
  const operands = (fixture: Fixture) => {
    const { weight, values } = make(fixture, [n, k]);
    const x = fixture.normals([most, k], 3);
    const norm = fixture.normals([k], 0.3, 1);
    const input = reference.rmsNorm(x.values, norm.values, EPS).values;
    return { weight: fixture.prepared(weight), values, x, norm: { weight: norm.tensor, eps: EPS }, input };
  };
  const counts = tokens.join(" or ");
  addCase("linear", `${name}: ${counts} tokens, norm and bias, added to out`, (fixture) => {
    const { weight, values, x, norm, input } = operands(fixture);
    const bias = fixture.normals([n]);
    const product = reference.linear(input, values, bias.values, n, k);
    for (const m of tokens) {
      const residual = fixture.state(fixture.random.normals(m * n, 2), [m, n]);
      const fusion: LinearFusion = { norm, bias: bias.tensor, addTo: residual.tensor };
      fixture.backend.linear(residual.tensor, x.tensor.rows(0, m), weight, fusion);
      const expected = reference.plus(reference.firstOf(product, m * n), residual.values);
      const precision = { dtype: fixture.dtype, reduction: 2 * k + 2, intermediates: 5 };
      expectClose(`out of ${m} tokens`, fixture.readFloats(residual.tensor), expected, precision);
    }
  });
  addCase("linear", `${name}: ${counts} tokens, norm, gated silu`, (fixture) => {
    const { weight, values, x, norm, input } = operands(fixture);
    const y = reference.gatedOf(reference.linear(input, values, undefined, n, k), n / 2, "silu");
    for (const m of tokens) {
      const out = fixture.output(fixture.dtype, [m, n / 2]);
      const fusion: LinearFusion = { norm, activation: { kind: "silu", gated: true } };
      fixture.backend.linear(out, x.tensor.rows(0, m), weight, fusion);
      const expected = reference.firstOf(y, (m * n) / 2);
      const precision = { dtype: fixture.dtype, reduction: 2 * k + 2, intermediates: 6 };
      expectClose(`out of ${m} tokens`, fixture.readFloats(out), expected, precision);
    }
  });
}
