import type { Case } from "../backend.contract.ts";
import { expectClose } from "../compare.ts";
import * as reference from "../reference.ts";

const SHAPES = [
  [1, 64],
  [3, 1],
  [3, 96],
  [17, 256],
  [17, 1001],
  [130, 1024],
  [1, 8192],
] as const;
const EPS = 1e-6;

export function normCases(addCase: Case): void {
  for (const [tokens, width] of SHAPES) {
    const shape = [tokens, width];
    const title = `[${shape}]`;

    addCase("rmsNorm", title, (fixture) => {
      const x = fixture.normals(shape, 3);
      const weight = fixture.normals([width], 0.3, 1);
      const out = fixture.output(fixture.dtype, shape);
      fixture.backend.rmsNorm(out, x.tensor, weight.tensor, EPS);
      const expected = reference.rmsNorm(x.values, weight.values, EPS);
      const precision = { dtype: fixture.dtype, reduction: width, intermediates: 1 };
      expectClose("out", fixture.readFloats(out), expected, precision);
    });

    addCase("rmsNorm", `${title}, added in place`, (fixture) => {
      const x = fixture.normals(shape, 3);
      const weight = fixture.normals([width], 0.3, 1);
      const residual = fixture.normals(shape, 10);
      const out = fixture.state(residual.values, shape).tensor;
      fixture.backend.rmsNorm(out, x.tensor, weight.tensor, EPS, out);
      const expected = reference.plus(reference.rmsNorm(x.values, weight.values, EPS), residual.values);
      expectClose("out", fixture.readFloats(out), expected, { dtype: fixture.dtype, reduction: width });
    });

    addCase("rmsNorm", `${title}, added in place, the sum scaled`, (fixture) => {
      const x = fixture.normals(shape, 3);
      const weight = fixture.normals([width], 0.3, 1);
      const residual = fixture.normals(shape, 10);
      const scale = fixture.input(Float32Array.of(0.17), [1], "float32");
      const out = fixture.state(residual.values, shape).tensor;
      fixture.backend.rmsNorm(out, x.tensor, weight.tensor, EPS, out, scale.tensor);
      const sum = reference.plus(reference.rmsNorm(x.values, weight.values, EPS), residual.values);
      const by = scale.values[0]!;
      const expected = {
        values: sum.values.map((value) => value * by),
        magnitudes: sum.magnitudes.map((size) => size * by),
      };
      expectClose("out", fixture.readFloats(out), expected, { dtype: fixture.dtype, reduction: width });
    });

    for (const withBias of [false, true]) {
      addCase("layerNorm", `${title}${withBias ? ", bias" : ""}`, (fixture) => {
        const x = fixture.normals(shape, 2, 5);
        const weight = fixture.normals([width], 0.3, 1);
        const bias = withBias ? fixture.normals([width]) : undefined;
        const out = fixture.output(fixture.dtype, shape);
        fixture.backend.layerNorm(out, x.tensor, weight.tensor, bias?.tensor, 1e-5);
        const expected = reference.layerNorm(x.values, weight.values, bias?.values, 1e-5);
        expectClose("out", fixture.readFloats(out), expected, { dtype: fixture.dtype, reduction: width });
      });
    }
  }

  addCase("rmsNorm", "eps carries a row of zeros", (fixture) => {
    const x = fixture.input(new Float32Array(64), [1, 64]);
    const weight = fixture.normals([64]);
    const out = fixture.output(fixture.dtype, [1, 64]);
    fixture.backend.rmsNorm(out, x.tensor, weight.tensor, EPS);
    const expected = reference.rmsNorm(x.values, weight.values, EPS);
    expectClose("out", fixture.readFloats(out), expected, { dtype: fixture.dtype, reduction: 1 });
  });
}
