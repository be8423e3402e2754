import type { Case } from "../backend.contract.ts";
import { expectEqual } from "../compare.ts";

export function gatherCases(addCase: Case): void {
  for (const op of ["embedding", "gatherRows"] as const) {
    for (const [count, source, width] of [
      [1, 1, 8],
      [3, 7, 64],
      [17, 300, 1],
      [130, 1000, 257],
    ] as const) {
      addCase(op, `${count} of ${source} rows of ${width}`, (fixture) => {
        const { tensor, values } = fixture.normals([source, width]);
        const ids = Array.from({ length: count }, (_, i) =>
          i === 0 ? source - 1 : fixture.random.int(source),
        );
        const out = fixture.output(fixture.dtype, [count, width]);
        fixture.backend[op](out, tensor, fixture.ints(ids));
        const expected = ids.flatMap((id) => [...values.subarray(id * width, (id + 1) * width)]);
        expectEqual("out", fixture.readFloats(out), expected);
      });
    }
  }
}
