import { expect } from "bun:test";
import type { Backend } from "../../../src/backend/backend.ts";
import { InvariantError } from "../../../src/base/errors.ts";
import type { Case } from "../backend.contract.ts";
import { expectEqual } from "../compare.ts";

export function memoryCases(addCase: Case, createBackend: () => Backend): void {
  addCase("upload", "round trip through a view, at an offset, leaving neighbours alone", (fixture) => {
    const { backend } = fixture;
    const whole = fixture.output("int32", [4, 5]);
    const source = Int32Array.from({ length: 20 }, (_, i) => i - 7);
    backend.upload(whole.rows(1, 3), source.subarray(3, 13));
    source.fill(0);
    const values = fixture.readInts(whole);
    expectEqual("rows 1-2", values.subarray(5, 15), [-4, -3, -2, -1, 0, 1, 2, 3, 4, 5]);
    expectEqual("row 0", values.subarray(0, 5), Array(5).fill(-1));
    expectEqual("row 3", values.subarray(15), Array(5).fill(-1));
  });

  addCase("download", "returns a copy", (fixture) => {
    const tensor = fixture.stateOf("uint32", Uint32Array.of(1, 2, 3), [3]);
    fixture.readWords(tensor).fill(9);
    expectEqual("tensor", fixture.readWords(tensor), [1, 2, 3]);
  });

  addCase("readback", "copies what the tensor held when it was called", (fixture) => {
    const { backend } = fixture;
    const tensor = fixture.stateOf("uint32", Uint32Array.of(4, 5, 6), [3]);
    const first = backend.readback(tensor);
    const indices = fixture.ints([1]);
    backend.scatter(tensor, indices, fixture.stateOf("uint32", Uint32Array.of(7), [1]));
    const second = backend.readback(tensor);
    expectEqual("second", new Uint32Array(second.wait().buffer), [4, 7, 6]);
    expectEqual("first", new Uint32Array(first.wait().buffer), [4, 5, 6]);
  });

  addCase("copy", "takes what the source holds then, from view to view", (fixture) => {
    const { backend } = fixture;
    const tensor = fixture.stateOf("uint32", Uint32Array.of(1, 2, 3, 4, 5, 6), [3, 2]);
    backend.copy(tensor.rows(2, 3), tensor.rows(0, 1));
    backend.fill(tensor.rows(0, 1), 0);
    expectEqual("tensor", fixture.readWords(tensor), [0, 0, 3, 4, 1, 2]);
    expect(() => backend.copy(tensor.rows(0, 2), tensor.rows(1, 3))).toThrow(InvariantError);
    expect(() => backend.copy(tensor.rows(0, 2), tensor.rows(2, 3))).toThrow(InvariantError);
  });

  addCase("fill", "sets every byte of a view", (fixture) => {
    const { backend } = fixture;
    const tensor = fixture.stateOf("uint32", new Uint32Array(6), [3, 2]);
    backend.fill(tensor.rows(1, 2), 0xab);
    backend.synchronize();
    expectEqual("tensor", fixture.readWords(tensor), [0, 0, 0xabababab, 0xabababab, 0, 0]);
  });

  addCase("empty", "gives memory of its own", ({ backend }) => {
    const [a, b] = [backend.empty("int32", [8]), backend.empty("int32", [8])];
    backend.fill(a, 1);
    backend.fill(b, 2);
    expect(backend.download(a).every((byte) => byte === 1)).toBe(true);
    for (const { buffer } of [a, b]) {
      buffer.dispose();
      buffer.dispose();
    }
  });

  addCase("dispose", "is safe to call twice, also after a buffer was disposed of", () => {
    const backend = createBackend();
    backend.allocate(1024).dispose();
    backend.allocate(1024);
    backend.dispose();
    backend.dispose();
  });
}
