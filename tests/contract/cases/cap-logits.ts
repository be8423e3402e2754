import type { Case } from "../backend.contract.ts";
import { expectClose } from "../compare.ts";

export function capLogitsCases(addCase: Case): void {
  for (const shape of [
    [3, 64],
    [5, 201],
  ]) {
    addCase("capLogits", `[${shape}], from far below the cap to far above`, (fixture) => {
      const count = shape[0]! * shape[1]!;
      const values = Float32Array.from({ length: count }, (_, i) => (i - count / 2) / 2);
      const logits = fixture.state(values, shape, "float32");
      fixture.backend.capLogits(logits.tensor, 30);
      const capped = Float64Array.from(values, (x) => 30 * Math.tanh(x / 30));
      const expected = { values: capped, magnitudes: capped.map(Math.abs) };
      expectClose("logits", fixture.readFloats(logits.tensor), expected, { dtype: "float32", reduction: 8 });
    });
  }
}
