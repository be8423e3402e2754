import type { Case } from "../backend.contract.ts";
import { expectClose } from "../compare.ts";
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

export function linearCases(addCase: Case): void {
  for (const [m, n, k] of SHAPES) {
    for (const variant of ["plain", "bias", "float32 out"] as const) {
      addCase("linear", `[${m}, ${k}] · [${n}, ${k}]ᵀ, ${variant}`, (fixture) => {
        const x = fixture.normals([m, k]);
        const weight = fixture.normals([n, k], 1 / Math.sqrt(k));
        const bias = variant === "bias" ? fixture.normals([n]) : undefined;
        const dtype = variant === "float32 out" ? "float32" : fixture.dtype;
        const out = fixture.output(dtype, [m, n]);
        fixture.backend.linear(out, x.tensor, weight.tensor, bias?.tensor);
        const expected = reference.linear(x.values, weight.values, bias?.values, n, k);
        // The product may be rounded before the bias is added.
        const intermediates = bias ? 1 : 0;
        expectClose("out", fixture.readFloats(out), expected, { dtype, reduction: k + 1, intermediates });
      });
    }
  }

  addCase("linear", "each token's result is its own: a NaN token leaves the others alone", (fixture) => {
    const [m, n, k] = [5, 9, 32];
    const values = fixture.random.normals(m * k);
    values.fill(Number.NaN, 2 * k, 3 * k);
    const x = fixture.input(values, [m, k]);
    const weight = fixture.normals([n, k]);
    const out = fixture.output(fixture.dtype, [m, n]);
    fixture.backend.linear(out, x.tensor, weight.tensor);
    const expected = reference.linear(x.values, weight.values, undefined, n, k);
    expectClose("out", fixture.readFloats(out), expected, { dtype: fixture.dtype, reduction: k });
  });
}
