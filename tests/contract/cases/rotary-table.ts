import type { Case } from "../backend.contract.ts";
import { roundoff } from "../compare.ts";

/** What float64 functions may be wrong by, in units of their results' scale. */
const FLOAT64_ERROR = 2 ** -50;

export function rotaryTableCases(addCase: Case): void {
  for (const [positions, half, amplitude] of [
    [1, 1, 1],
    [7, 3, 1.138629436111989],
    [300, 64, 1],
    [70_000, 4, 1],
    [3, 300, 0.1],
  ] as const) {
    addCase("rotaryTable", `${positions} positions, ${half} frequencies times ${amplitude}`, (fixture) => {
      const values = Float32Array.from({ length: half }, (_, i) => 1e4 ** (-i / half));
      const frequencies = fixture.input(values, [half], "float32").tensor;
      const out = fixture.output("float32", [positions, 2 * half]);
      fixture.backend.rotaryTable(out, frequencies, amplitude);
      // Rounded once: half a unit in the last place.
      const actual = fixture.readFloats(out);
      for (const [at, got] of actual.entries()) {
        const [position, i] = [Math.floor(at / (2 * half)), at % (2 * half)];
        const angle = Math.fround(position * values[i % half]!);
        const want = amplitude * (i < half ? Math.cos(angle) : Math.sin(angle));
        const tolerance = roundoff("float32") * Math.abs(want) + FLOAT64_ERROR;
        if (!(Math.abs(got - want) <= tolerance))
          throw new Error(`out[${position}, ${i}] is ${got}, expected ${want} ± ${tolerance}`);
      }
    });
  }
}
