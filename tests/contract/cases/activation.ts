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
}
