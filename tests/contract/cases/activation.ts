import type { Case } from "../backend.contract.ts";
import { expectClose } from "../compare.ts";
import * as reference from "../reference.ts";

const SHAPES = [
  [1, 1],
  [3, 96],
  [17, 769],
  [130, 64],
] as const;

export function activationCases(addCase: Case): void {
  for (const name of ["silu", "gelu", "gelu_tanh"] as const) {
    for (const [tokens, width] of SHAPES) {
      addCase("gatedActivation", `${name} [${tokens}, ${width}]`, (fixture) => {
        const gateUp = fixture.normals([tokens, 2 * width], 3);
        const out = fixture.output(fixture.dtype, [tokens, width]);
        fixture.backend.gatedActivation(out, gateUp.tensor, name);
        const expected = reference.gatedActivation(gateUp.values, width, name);
        const precision = { dtype: fixture.dtype, reduction: 1, intermediates: 0 };
        expectClose("out", fixture.readFloats(out), expected, precision);
      });
    }

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
}
