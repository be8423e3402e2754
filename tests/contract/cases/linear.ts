import type { LinearFusion } from "../../../src/backend/backend.ts";
import { denseWeight } from "../../../src/backend/weight.ts";
import type { Case } from "../backend.contract.ts";
import { expectClose } from "../compare.ts";
import type { Fixture } from "../fixture.ts";
import * as reference from "../reference.ts";

const SHAPES = [
  [1, 1, 1],
  [1, 768, 256],
  [1, 5, 2560],
  [2, 3, 5],
  [3, 33, 130],
  [3, 512, 256],
  [17, 7, 64],
  [17, 250, 96],
  [130, 66, 257],
  [130, 128, 768],
] as const;
/** The same for kernels. */
const GRID_SHAPES = [
  // Whole tiles and chunks of what kernels for few tokens take: one chunk and several, x kept and read again.
  [1, 2160, 512],
  [2, 48, 5120],
  [3, 48, 5120],
  [5, 4240, 256],
  [8, 528, 1024],
  [8, 2128, 5120],
  // The same of a last chunk with fewer columns than the others, and of one with fewer than warps take at a time.
  [1, 2160, 2880],
  [2, 48, 5216],
  [8, 2160, 96],
  // Whole tiles of what takes some ten to some hundred tokens, one tile to a block and several, with and without splits.
  [9, 64, 64],
  [15, 64, 3072],
  [16, 19264, 64],
  [63, 192, 384],
  [97, 128, 192],
] as const;
/** Tokens, outputs (even, for gates) and inputs of products with something around them. */
const FUSED_SHAPES = [
  [1, 768, 256],
  [2, 6, 5],
  [3, 34, 130],
  [17, 250, 96],
  [130, 128, 768],
] as const;
/** The same of whole tiles of what kernels for few tokens take. */
const FUSED_GRID_SHAPES = [
  [1, 2160, 512],
  [2, 96, 5120],
  [8, 4320, 256],
  [3, 96, 2880],
  [1, 96, 5216],
] as const;
/** The same of weights that have a checkpoint's dtype. */
const KEPT_SHAPES = [
  [1, 33, 1030],
  [67, 20, 600],
  [3, 50, 72],
  [9, 8, 5],
] as const;
/** The same of products that kernels for many tokens take: last tiles of tokens and of outputs that are not full. */
const LARGE_SHAPES = [
  [300, 192, 128],
  [515, 448, 64],
] as const;
/** As many tiles as to come in turns, of several steps. */
const MANY_TILES = [1700, 2112, 192] as const;
/**
 * The same for what takes some ten to some hundred tokens in whole tiles of 64: few shapes, as each is compiled for. Tokens
 * fill a tile, or do not, or need two; columns are shared by splits; blocks have one tile of rows, or several.
 */
const TILED_SHAPES = [
  ...[9, 15, 16, 17, 63, 100, 129, 255, 256].map((m) => [m, 256, 512] as const),
  [33, 128, 192],
  [12, 17408, 128],
] as const;
const EPS = 1e-6;

type Shape = readonly [m: number, n: number, k: number];

export function linearCases(addCase: Case): void {
  for (const [[m, n, k], size] of sized(SHAPES, GRID_SHAPES)) {
    for (const variant of ["plain", "bias", "float32 out"] as const) {
      const title = `[${m}, ${k}] · [${n}, ${k}]ᵀ, ${variant}`;
      const body = (fixture: Fixture) => {
        const x = fixture.normals([m, k]);
        const weight = fixture.normals([n, k], 1 / Math.sqrt(k));
        const bias = variant === "bias" ? fixture.normals([n]) : undefined;
        const dtype = variant === "float32 out" ? "float32" : fixture.dtype;
        const out = fixture.output(dtype, [m, n]);
        fixture.backend.linear(out, x.tensor, denseWeight(weight.tensor), { bias: bias?.tensor });
        const expected = reference.linear(x.values, weight.values, bias?.values, n, k);
        // The product may be rounded before the bias is added.
        const intermediates = bias ? 1 : 0;
        expectClose("out", fixture.readFloats(out), expected, { dtype, reduction: k + 1, intermediates });
      };
      addCase("linear", title, body, size);
    }
  }
  for (const dtype of ["bfloat16", "float16"] as const) {
    addCase("linear", `weights of ${dtype} where a checkpoint's are kept`, (fixture) => {
      if (fixture.dtype === dtype || !fixture.backend.matrixDtypes?.includes(dtype)) return;
      for (const [m, n, k] of KEPT_SHAPES) {
        const x = fixture.normals([m, k]);
        const weight = fixture.input(fixture.random.normals(n * k, 1 / Math.sqrt(k)), [n, k], dtype);
        const out = fixture.output(fixture.dtype, [m, n]);
        fixture.backend.linear(out, x.tensor, denseWeight(weight.tensor));
        const expected = reference.linear(x.values, weight.values, undefined, n, k);
        expectClose(`[${m}, ${n}, ${k}]`, fixture.readFloats(out), expected, {
          dtype: fixture.dtype,
          reduction: k,
        });
      }
    });
  }
  for (const [[m, n, k], size] of sized(FUSED_SHAPES, FUSED_GRID_SHAPES)) {
    const body = (fixture: Fixture) => {
      const x = fixture.normals([m, k], 3);
      const weight = fixture.normals([n, k], 1 / Math.sqrt(k));
      const norm = fixture.normals([k], 0.3, 1);
      const out = fixture.output("float32", [m, n]);
      const fusion = { norm: { weight: norm.tensor, eps: EPS } };
      fixture.backend.linear(out, x.tensor, denseWeight(weight.tensor), fusion);
      const input = reference.rmsNorm(x.values, norm.values, EPS).values;
      const expected = reference.linear(input, weight.values, undefined, n, k);
      // The normalised input alone may be rounded to the dtype of activations.
      const precision = { dtype: fixture.dtype, reduction: 2 * k, intermediates: 2 };
      expectClose("out", fixture.readFloats(out), expected, precision);
    };
    addCase("linear", `[${m}, ${k}] · [${n}, ${k}]ᵀ, norm, float32 out`, body, size);
  }
  for (const [shape, size] of sized(FUSED_SHAPES, FUSED_GRID_SHAPES))
    fusedCases(addCase, shape, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], size);
  // Norm; bias and sum in place; all three from another tensor.
  for (const shape of TILED_SHAPES) fusedCases(addCase, shape, [1, 6, 11], "grid");
  activationCases(addCase);

  addCase("linear", "each token's result is its own: a NaN token leaves the others alone", (fixture) => {
    const [m, n, k] = [5, 9, 32];
    const values = fixture.random.normals(m * k);
    values.fill(Number.NaN, 2 * k, 3 * k);
    const x = fixture.input(values, [m, k]);
    const weight = fixture.normals([n, k]);
    const out = fixture.output(fixture.dtype, [m, n]);
    fixture.backend.linear(out, x.tensor, denseWeight(weight.tensor));
    const expected = reference.linear(x.values, weight.values, undefined, n, k);
    expectClose("out", fixture.readFloats(out), expected, { dtype: fixture.dtype, reduction: k });
  });

  addCase("linear", "without a sum, what `out` holds is never read", (fixture) => {
    const [x, weight] = [fixture.normals([3, 16]), fixture.normals([8, 16])];
    for (const bias of [undefined, fixture.normals([8])]) {
      const out = fixture.output(fixture.dtype, [3, 8]);
      fixture.backend.linear(out, x.tensor, denseWeight(weight.tensor), { bias: bias?.tensor });
      if (fixture.readFloats(out).some(Number.isNaN)) throw new Error("NaN was read");
    }
  });
}

type Size = Parameters<Case>[3];

/** Shapes for every backend, and those for kernels. */
function sized(shapes: readonly Shape[], grid: readonly Shape[]): (readonly [Shape, Size])[] {
  return [
    ...shapes.map((shape) => [shape, undefined] as const),
    ...grid.map((shape) => [shape, "grid"] as const),
  ];
}

/** Combinations of norm (1), bias (2) and sum (4 in place, 8 of another tensor). */
function fusedCases(addCase: Case, [m, n, k]: Shape, variants: readonly number[], size: Size): void {
  for (const variant of variants) {
    const [withNorm, withBias] = [(variant & 1) !== 0, (variant & 2) !== 0];
    const sum = (["none", "out", "another"] as const)[variant >> 2]!;
    const parts = [withNorm && "norm", withBias && "bias", sum !== "none" && `added to ${sum}`];
    const title = `[${m}, ${k}] · [${n}, ${k}]ᵀ, ${parts.filter(Boolean).join(", ")}`;
    const body = (fixture: Fixture) => {
      const x = fixture.normals([m, k], 3);
      const weight = fixture.normals([n, k], 1 / Math.sqrt(k));
      const norm = withNorm ? fixture.normals([k], 0.3, 1) : undefined;
      const bias = withBias ? fixture.normals([n]) : undefined;
      const terms = fixture.random.normals(m * n, 2);
      const inPlace = sum === "out";
      const addTo = inPlace ? fixture.state(terms, [m, n]) : fixture.input(terms, [m, n]);
      const out = inPlace ? addTo.tensor : fixture.output(fixture.dtype, [m, n]);
      const fusion: LinearFusion = {
        norm: norm && { weight: norm.tensor, eps: EPS },
        bias: bias?.tensor,
        addTo: sum === "none" ? undefined : addTo.tensor,
      };
      fixture.backend.linear(out, x.tensor, denseWeight(weight.tensor), fusion);
      const input = norm ? reference.rmsNorm(x.values, norm.values, EPS).values : x.values;
      const product = reference.linear(input, weight.values, bias?.values, n, k);
      const expected = sum === "none" ? product : reference.plus(product, addTo.values);
      // The normalised input, the product, and the product with its bias may be rounded.
      const intermediates = (norm ? 2 : 0) + (bias ? 1 : 0) + (sum === "none" ? 0 : 1);
      const precision = { dtype: fixture.dtype, reduction: 2 * k + 2, intermediates };
      expectClose("out", fixture.readFloats(out), expected, precision);
    };
    addCase("linear", title, body, size);
  }
}

function activationCases(addCase: Case): void {
  for (const kind of ["silu", "gelu", "gelu_tanh"] as const) {
    // Products with the identity are exact: what is left is the activation.
    for (const [m, width] of [
      [1, 1],
      [3, 96],
      [17, 769],
      [130, 64],
    ] as const) {
      addCase("linear", `gated ${kind} of [${m}, 2 · ${width}], a product with the identity`, (fixture) => {
        const gateUp = fixture.normals([m, 2 * width], 3);
        const identity = new Float32Array(4 * width * width);
        for (let i = 0; i < 2 * width; i++) identity[i * 2 * width + i] = 1;
        const weight = denseWeight(fixture.input(identity, [2 * width, 2 * width]).tensor);
        const out = fixture.output(fixture.dtype, [m, width]);
        const activation = { kind, gated: true };
        fixture.backend.linear(out, gateUp.tensor, weight, { activation });
        const expected = reference.gatedActivation(gateUp.values, width, kind);
        expectClose("out", fixture.readFloats(out), expected, { dtype: fixture.dtype, reduction: 1 });
      });
    }

    for (const gated of [false, true]) {
      const tiled = gated && kind === "silu" ? [...TILED_SHAPES, MANY_TILES] : TILED_SHAPES.slice(0, 1);
      const grid = [...FUSED_GRID_SHAPES, ...LARGE_SHAPES, ...tiled];
      for (const [[m, n, k], size] of sized(FUSED_SHAPES, grid)) {
        const title = `${gated ? "gated " : ""}${kind} of [${m}, ${k}] · [${n}, ${k}]ᵀ with norm and bias`;
        const body = (fixture: Fixture) => {
          const x = fixture.normals([m, k], 3);
          const weight = fixture.normals([n, k], 1 / Math.sqrt(k));
          const norm = fixture.normals([k], 0.3, 1);
          const bias = fixture.normals([n]);
          const out = fixture.output(fixture.dtype, [m, gated ? n / 2 : n]);
          fixture.backend.linear(out, x.tensor, denseWeight(weight.tensor), {
            norm: { weight: norm.tensor, eps: EPS },
            bias: bias.tensor,
            activation: { kind, gated },
          });
          const input = reference.rmsNorm(x.values, norm.values, EPS).values;
          const y = reference.linear(input, weight.values, bias.values, n, k);
          const expected = gated
            ? reference.gatedOf(y, n / 2, kind)
            : { ...reference.activation(y.values, kind), magnitudes: y.magnitudes };
          // Rounded may be the normalised input, the product, and what is activated; activations are at most 1.13 steep.
          const precision = { dtype: fixture.dtype, reduction: 2 * k + 2, intermediates: 5 };
          expectClose("out", fixture.readFloats(out), expected, precision);
        };
        addCase("linear", title, body, size);
      }
    }
  }
}
