import type { Case } from "../backend.contract.ts";
import { expectClose } from "../compare.ts";
import * as reference from "../reference.ts";

export function activationCases(addCase: Case): void {
  for (const name of ["silu", "gelu", "gelu_tanh"] as const) {
    for (const inPlace of [false, true]) {
      addCase("activation", `${name}, from −50 to 50${inPlace ? ", in place" : ""}`, (fixture) => {
        const shape = [5, 201];
        const values = Float32Array.from({ length: 1005 }, (_, i) => (i - 502) / 10);
        const x = inPlace ? fixture.state(values, shape) : fixture.input(values, shape);
        const out = inPlace ? x.tensor : fixture.output(fixture.dtype, shape);
        fixture.backend.activation(out, x.tensor, name);
        const expected = reference.activation(x.values, name);
        expectClose("out", fixture.readFloats(out), expected, { dtype: fixture.dtype, reduction: 1 });
      });
    }
  }
  // By vectors, and where neither the rows nor their columns begin at one.
  for (const [width, stride, start] of [
    [64, 256, 128],
    [1024, 1024, 0],
    [8, 203, 96],
    [7, 40, 16],
    [40, 100, 3],
  ] as const) {
    addCase("multiplyColumns", `${width} of ${stride} from ${start} on`, (fixture) => {
      const rows = 5;
      const x = fixture.state(fixture.random.normals(rows * width, 3), [rows, width]);
      const factors = fixture.normals([rows, stride], 2);
      fixture.backend.multiplyColumns(x.tensor, factors.tensor, start);
      const expected = Float64Array.from(x.values, (value, i) => {
        return value * factors.values[Math.floor(i / width) * stride + start + (i % width)]!;
      });
      const result = { values: expected, magnitudes: expected.map(Math.abs) };
      expectClose("x", fixture.readFloats(x.tensor), result, { dtype: fixture.dtype, reduction: 1 });
    });
  }
}
