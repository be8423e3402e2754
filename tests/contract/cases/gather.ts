import type { Case } from "../backend.contract.ts";
import { expectClose, expectEqual } from "../compare.ts";

export function gatherCases(addCase: Case): void {
  for (const op of ["embedding", "gatherRows"] as const) {
    for (const [count, source, width] of [
      [1, 1, 8],
      [3, 7, 64],
      [17, 300, 1],
      [130, 1000, 257],
    ] as const) {
      addCase(op, `${count} of ${source} rows of ${width}`, (fixture) => {
        const kept = op === "embedding" ? (fixture.backend.matrixDtypes ?? []) : [];
        for (const dtype of [fixture.dtype, ...kept]) {
          const { tensor, values } = fixture.input(
            fixture.random.normals(source * width),
            [source, width],
            dtype,
          );
          const ids = Array.from({ length: count }, (_, i) =>
            i === 0 ? source - 1 : fixture.random.int(source),
          );
          const out = fixture.output(fixture.dtype, [count, width]);
          fixture.backend[op](out, tensor, fixture.ints(ids));
          const expected = ids.flatMap((id) => [...values.subarray(id * width, (id + 1) * width)]);
          expectEqual("out", fixture.readFloats(out), expected);
        }
      });
    }
  }

  for (const width of [64, 257]) {
    addCase("embedding", `rows of ${width} times a scale, those of another rank zeros`, (fixture) => {
      const { tensor, values } = fixture.normals([5, width]);
      const ids = [12, 9, 10, 15];
      const out = fixture.output(fixture.dtype, [4, width]);
      fixture.backend.embedding(out, tensor, fixture.ints(ids), 10, 55.25);
      const scaled = ids.flatMap((id) =>
        Array.from({ length: width }, (_, i) => (values[(id - 10) * width + i] ?? 0) * 55.25),
      );
      const expected = { values: Float64Array.from(scaled), magnitudes: Float64Array.from(scaled, Math.abs) };
      expectClose("out", fixture.readFloats(out), expected, { dtype: fixture.dtype, reduction: 1 });
    });
  }
}
