import { expect } from "bun:test";
import { InvariantError } from "../../../src/base/errors.ts";
import type { Case } from "../backend.contract.ts";

export function checksCases(addCase: Case): void {
  const refuse = (body: () => void, message: RegExp) => {
    expect(body).toThrow(InvariantError);
    expect(body).toThrow(message);
  };

  addCase("linear", "refuses wrong extents, dtypes and overlap, naming op and tensor", (fixture) => {
    const { backend, dtype } = fixture;
    const x = fixture.normals([3, 8]).tensor;
    const weight = fixture.normals([4, 8]).tensor;
    const out = fixture.output(dtype, [3, 4]);
    refuse(() => backend.linear(fixture.output(dtype, [3, 5]), x, weight), /linear: out is .*\[3, 4\]/);
    refuse(() => backend.linear(out, fixture.normals([3, 7]).tensor, weight), /linear: weight/);
    refuse(() => backend.linear(fixture.output("int32", [3, 4]), x, weight), /linear: out is int32/);
    refuse(() => backend.linear(out, x, weight, fixture.normals([3]).tensor), /linear: bias/);
    if (dtype !== "float32") {
      const wide = fixture.output("float32", [3, 4]);
      const bias = fixture.normals([4]).tensor;
      refuse(() => backend.linear(wide, x, weight, bias), /linear: out is float32/);
    }
    const square = fixture.normals([8, 8]).tensor;
    refuse(() => backend.linear(square, square, fixture.normals([8, 8]).tensor), /out overlaps x/);
    expect(fixture.readFloats(out).every(Number.isNaN)).toBe(true);
  });

  addCase("rmsNorm", "refuses a weight of another width", (fixture) => {
    const x = fixture.normals([2, 8]).tensor;
    const out = fixture.output(fixture.dtype, [2, 8]);
    refuse(() => fixture.backend.rmsNorm(out, x, fixture.normals([7]).tensor, 1e-6), /rmsNorm: weight/);
  });

  addCase("embedding", "refuses float ids", (fixture) => {
    const table = fixture.normals([5, 8]).tensor;
    const out = fixture.output(fixture.dtype, [2, 8]);
    const ids = fixture.normals([2]).tensor;
    refuse(() => fixture.backend.embedding(out, table, ids), /embedding: ids/);
  });
}
