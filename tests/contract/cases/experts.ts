import type { ExpertActivation, ExpertFusion, ExpertSpec } from "../../../src/backend/experts.ts";
import { denseWeight, type Weight } from "../../../src/backend/weight.ts";
import type { Case } from "../backend.contract.ts";
import { type Expected, expectClose, expectEqual } from "../compare.ts";
import type { Fixture, Uploaded } from "../fixture.ts";
import { fp8Weight, groupedWeight, mxfp4Weight } from "../quantised-weights.ts";
import * as reference from "../reference.ts";

const EPS = 1e-6;
const SILU: ExpertActivation = { kind: "silu" };

interface Sizes {
  readonly tokens: number;
  readonly count: number;
  readonly perToken: number;
  readonly hidden: number;
  readonly intermediate: number;
}

const sizesOf = (
  tokens: number,
  count: number,
  perToken: number,
  hidden: number,
  intermediate: number,
): Sizes => ({
  ...{ tokens, count, perToken, hidden, intermediate },
});

/** One token, a few, tiles of tokens; fewer experts than tokens and more; all experts; partial tiles of every dimension. */
const SIZES: readonly Sizes[] = [
  sizesOf(1, 8, 2, 64, 32),
  sizesOf(1, 128, 8, 64, 32),
  sizesOf(2, 3, 1, 32, 8),
  sizesOf(3, 4, 4, 128, 64),
  sizesOf(7, 16, 3, 264, 40),
  sizesOf(8, 128, 8, 128, 16),
  sizesOf(3, 2, 2, 1032, 264),
  sizesOf(9, 200, 4, 64, 16),
  sizesOf(33, 8, 2, 128, 48),
  sizesOf(64, 60, 4, 64, 40),
  sizesOf(130, 8, 2, 72, 40),
  sizesOf(257, 32, 4, 64, 64),
  sizesOf(300, 5, 2, 128, 136),
  sizesOf(600, 4, 2, 128, 64),
];

interface Matrix {
  readonly weight: Weight;
  readonly values: Float32Array | Float64Array;
}

type Make = (fixture: Fixture, n: number, k: number) => Matrix;

const dense: Make = (fixture, n, k) => {
  const { tensor, values } = fixture.normals([n, k], 1 / Math.sqrt(k));
  return { weight: denseWeight(tensor), values };
};

const QUANTISED: Readonly<Record<string, Make>> = {
  mxfp4: (fixture, n, k) => mxfp4Weight(fixture, [n, k]),
  "fp8, a scale a channel": (fixture, n, k) => fp8Weight(fixture, [n, k], { blockRows: 1, blockColumns: k }),
  "fp8, blocks": (fixture, n, k) => fp8Weight(fixture, [n, k], { blockRows: 64, blockColumns: 128 }),
  // Groups of a piece, of what four lanes load together, and of whole rows.
  "4 bits, groups of 32": (fixture, n, k) =>
    groupedWeight(fixture, [n, k], { bits: 4, groupSize: 32, zeros: true }),
  "4 bits, groups of 128": (fixture, n, k) =>
    groupedWeight(fixture, [n, k], { bits: 4, groupSize: 128, zeros: true, scaleDtype: "bfloat16" }),
  "4 bits, rows": (fixture, n, k) => groupedWeight(fixture, [n, k], { bits: 4, groupSize: k }),
  "8 bits, groups of 16": (fixture, n, k) =>
    groupedWeight(fixture, [n, k], { bits: 8, groupSize: 16, scaleDtype: "bfloat16" }),
  "8 bits, groups of 64": (fixture, n, k) =>
    groupedWeight(fixture, [n, k], { bits: 8, groupSize: 64, zeros: true }),
  "8 bits, rows": (fixture, n, k) => groupedWeight(fixture, [n, k], { bits: 8, groupSize: k, zeros: true }),
};

/** Everything that a case may vary. */
interface Form {
  readonly make?: Make;
  readonly softmaxOver?: ExpertSpec["softmaxOver"];
  readonly activation?: ExpertActivation;
  readonly biases?: boolean;
  /** Weights of experts are scaled. */
  readonly scales?: boolean;
  readonly norm?: boolean;
  /** `out` is x and what is added to. */
  readonly inPlace?: boolean;
  /** Every token prefers the first experts, in their order. */
  readonly skewed?: boolean;
  /** All logits of a token are the same. */
  readonly equal?: boolean;
}

/** A mixture of experts against its definition, one token after another. */
export function expertCases(addCase: Case): void {
  const add = (title: string, sizes: Sizes, form: Form) => {
    const { tokens, count, perToken, hidden, intermediate } = sizes;
    const text = `${title}: ${tokens} tokens, ${perToken} of ${count} experts [${intermediate}, ${hidden}]`;
    addCase("experts", text, (fixture) => check(fixture, sizes, form));
  };
  for (const sizes of SIZES) {
    add("plain", sizes, {});
    add("norm, in place", sizes, { norm: true, inPlace: true, softmaxOver: "all" });
  }
  for (const sizes of [sizesOf(5, 8, 3, 64, 32), sizesOf(90, 6, 2, 128, 64)]) {
    add("equal logits", sizes, { equal: true });
    add("the same experts for all", sizes, { skewed: true });
    add("biases", sizes, { biases: true });
    const limited = { kind: "limited_swiglu", alpha: 1.702, limit: 1 } as const;
    add("limited, biases", sizes, { biases: true, activation: limited, norm: true });
    add("gelu", sizes, { activation: { kind: "gelu_tanh" } });
  }
  // Each kernel that chooses: for one token, for few, and for many.
  for (const tokens of [1, 5, 300])
    add("scaled", sizesOf(tokens, 8, 3, 64, 32), { scales: true, norm: tokens === 5, biases: tokens === 1 });
  add("the same experts for all", sizesOf(500, 128, 8, 64, 32), { skewed: true });
  for (const [name, make] of Object.entries(QUANTISED)) {
    for (const sizes of [sizesOf(1, 4, 2, 128, 128), sizesOf(3, 4, 2, 128, 128), sizesOf(40, 3, 2, 256, 128)])
      add(name, sizes, { make });
  }
  const make = QUANTISED["mxfp4"]!;
  const blocks = QUANTISED["fp8, blocks"]!;
  for (const name of ["4 bits, groups of 32", "8 bits, groups of 16", "4 bits, rows"]) {
    const ragged = { make: QUANTISED[name]!, biases: true, norm: true };
    add(`${name}, biases`, sizesOf(1, 4, 3, 160, 96), ragged);
    add(`${name}, biases`, sizesOf(70, 4, 2, 96, 160), ragged);
    add(name, sizesOf(300, 2, 1, 1312, 64), { make: QUANTISED[name]! });
  }
  add("fp8, blocks", sizesOf(5, 4, 2, 272, 160), { make: blocks, biases: true, norm: true });
  add("fp8, blocks", sizesOf(300, 2, 1, 192, 64), { make: blocks });
  add("mxfp4, biases", sizesOf(3, 4, 2, 96, 160), { make, biases: true });
  add("mxfp4, biases", sizesOf(70, 4, 2, 96, 160), { make, biases: true, norm: true, inPlace: true });
  add("mxfp4", sizesOf(300, 2, 1, 128, 64), { make });
  add("mxfp4", sizesOf(4, 2, 1, 1312, 32), { make });

  addCase("experts", "the same bits twice", (fixture) => {
    const sizes = sizesOf(70, 8, 2, 128, 64);
    const { x, logits, weights, spec } = operands(fixture, sizes, {});
    const run = () => {
      const out = fixture.output(fixture.dtype, [sizes.tokens, sizes.hidden]);
      fixture.backend.experts(out, x.tensor, logits.tensor, weights, spec);
      return fixture.readFloats(out);
    };
    expectEqual("out", run(), run());
  });

  for (const [tokens, hidden, width, eps] of [
    [1, 8, 8, undefined],
    [5, 40, 33, 0.1],
    [70, 2056, 256, 1e-6],
  ] as const) {
    const form = `[${tokens}, ${width}] of ${hidden}${eps === undefined ? "" : ", with a norm"}`;
    addCase("gateRows", form, (fixture) => {
      const { random, dtype } = fixture;
      const y = fixture.state(random.normals(tokens * width, 3), [tokens, width]);
      const x = fixture.input(random.normals(tokens * hidden, 2), [tokens, hidden]);
      const gate = fixture.input(random.normals(hidden, 2 / Math.sqrt(hidden)), [1, hidden]);
      const gamma = eps === undefined ? undefined : fixture.input(random.normals(hidden), [hidden]);
      const norm = gamma && { weight: gamma.tensor, eps: eps! };
      fixture.backend.gateRows(y.tensor, x.tensor, denseWeight(gate.tensor), norm);
      const gates = Array.from({ length: tokens }, (_, token) => {
        const row = x.values.subarray(token * hidden, (token + 1) * hidden);
        const squares = row.reduce((sum, value) => sum + value * value, 0);
        const scale = eps === undefined ? 1 : 1 / Math.sqrt(squares / hidden + eps);
        const logit = row.reduce(
          (sum, value, i) => sum + value * scale * (gamma?.values[i] ?? 1) * gate.values[i]!,
          0,
        );
        return 1 / (1 + Math.exp(-logit));
      });
      const values = Float64Array.from(y.values, (value, i) => value * gates[Math.floor(i / width)]!);
      const expected = { values, magnitudes: values.map(Math.abs) };
      expectClose("y", fixture.readFloats(y.tensor), expected, { dtype, reduction: hidden });
    });
  }
}

function operands(fixture: Fixture, { tokens, count, perToken, hidden, intermediate }: Sizes, form: Form) {
  const { make = dense, softmaxOver = "chosen", activation = SILU } = form;
  const x = fixture.state(fixture.random.normals(tokens * hidden, 2), [tokens, hidden]);
  const logits = fixture.input(logitsOf(fixture, tokens, count, form), [tokens, count], "float32");
  const gateUp = make(fixture, count * 2 * intermediate, hidden);
  const down = make(fixture, count * hidden, intermediate);
  const [gateUpBias, downBias] = form.biases
    ? [fixture.normals([count * 2 * intermediate]), fixture.normals([count * hidden])]
    : [];
  const routerBias = form.biases
    ? fixture.input(fixture.random.normals(count, 3), [count], "float32")
    : undefined;
  const expertScales = form.scales
    ? fixture.input(fixture.random.normals(count, 0.5, 1), [count], "float32")
    : undefined;
  const spec: ExpertSpec = { perToken, softmaxOver, activation };
  const weights = {
    ...{ count, routerBias: routerBias?.tensor, gateUp: gateUp.weight, down: down.weight },
    expertScales: expertScales?.tensor,
    ...{ gateUpBias: gateUpBias?.tensor, downBias: downBias?.tensor },
  };
  return { x, logits, routerBias, expertScales, gateUp, down, gateUpBias, downBias, weights, spec };
}

function logitsOf({ random }: Fixture, tokens: number, count: number, { skewed, equal }: Form): Float32Array {
  if (equal) return new Float32Array(tokens * count).fill(0.25);
  const logits = random.normals(tokens * count, 2);
  return skewed ? logits.map((logit, i) => logit / 100 - (i % count)) : logits;
}

function check(fixture: Fixture, sizes: Sizes, form: Form): void {
  const { tokens, hidden, intermediate } = sizes;
  const { x, logits, weights, spec, ...parts } = operands(fixture, sizes, form);
  const norm = form.norm ? fixture.normals([hidden], 0.3, 1) : undefined;
  const added = form.inPlace ? x : undefined;
  const out = form.inPlace ? x.tensor : fixture.output(fixture.dtype, [tokens, hidden]);
  const fusion: ExpertFusion = {
    norm: norm && { weight: norm.tensor, eps: EPS },
    addTo: added?.tensor,
  };
  fixture.backend.experts(out, x.tensor, logits.tensor, weights, spec, fusion);
  const input = norm ? reference.rmsNorm(x.values, norm.values, EPS).values : new Float64Array(x.values);
  const expected = mixture(input, logits, sizes, spec, parts);
  // Rounded may be the normalised input, both products, what is activated, and each term.
  const precision = { dtype: fixture.dtype, reduction: 2 * (hidden + intermediate), intermediates: 7 };
  const total = added ? reference.plus(expected, added.values) : expected;
  expectClose("out", fixture.readFloats(out), total, precision);
}

interface Parts {
  readonly routerBias: Uploaded | undefined;
  readonly expertScales: Uploaded | undefined;
  readonly gateUp: Matrix;
  readonly down: Matrix;
  readonly gateUpBias: Uploaded | undefined;
  readonly downBias: Uploaded | undefined;
}

/** The definition: each token by itself. */
function mixture(
  input: Float64Array,
  logits: Uploaded,
  { tokens, count, hidden, intermediate }: Sizes,
  { perToken, softmaxOver, activation }: ExpertSpec,
  { routerBias, expertScales, gateUp, down, gateUpBias, downBias }: Parts,
): Expected {
  const values = new Float64Array(tokens * hidden);
  const magnitudes = new Float64Array(tokens * hidden);
  const part = <T extends Float32Array | Float64Array>(values: T, expert: number, size: number) =>
    values.subarray(expert * size, (expert + 1) * size) as T;
  const [gateUps, downs] = [new Float64Array(gateUp.values), new Float64Array(down.values)];
  const [downSizes, biasSizes] = [downs.map(Math.abs), downBias?.values.map(Math.abs)];
  for (let token = 0; token < tokens; token++) {
    const own = Array.from(logits.values.subarray(token * count, (token + 1) * count));
    const row = own.map((logit, expert) => Math.fround(logit + (routerBias?.values[expert] ?? 0)));
    const order = row.map((_, i) => i).sort((a, b) => row[b]! - row[a]! || a - b);
    const chosen = order.slice(0, perToken);
    const over = softmaxOver === "all" ? order : chosen;
    const total = over.reduce((sum, expert) => sum + Math.exp(row[expert]!), 0);
    const x = input.subarray(token * hidden, (token + 1) * hidden);
    for (const expert of chosen) {
      const weight = (Math.exp(row[expert]!) / total) * (expertScales?.values[expert] ?? 1);
      const size = 2 * intermediate;
      const bias = gateUpBias && part(gateUpBias.values, expert, size);
      const both = reference.linear(x, part(gateUps, expert, size * hidden), bias, size, hidden);
      const activated = reference.activatedOf(both, intermediate, activation);
      const product = (x: Float64Array, values: Float64Array, bias: Float32Array | undefined) => {
        const offset = bias && part(bias, expert, hidden);
        return reference.linear(x, part(values, expert, hidden * intermediate), offset, hidden, intermediate);
      };
      const y = product(activated.values, downs, downBias?.values);
      const sizes = product(activated.magnitudes, downSizes, biasSizes);
      for (let i = 0; i < hidden; i++) {
        values[token * hidden + i]! += weight * y.values[i]!;
        magnitudes[token * hidden + i]! += Math.abs(weight) * sizes.values[i]!;
      }
    }
  }
  return { values, magnitudes };
}
