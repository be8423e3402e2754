import { expect } from "bun:test";
import type { Case } from "../backend.contract.ts";
import { refusals } from "../refusal-tables.ts";
import { acceptedOf, callsOf } from "../refusals.ts";

/** Titles come from any dtype's tables; each case takes the one of its backend. */
export function checksCases(addCase: Case): void {
  for (const [i, { op, title }] of refusals("float32").entries()) {
    const what = ["refuses wrong dtypes, extents and overlap", title].join(" ").trimEnd();
    addCase(op, what, (fixture) => {
      const { backend, dtype } = fixture;
      const place = (words: Int32Array) => fixture.stateOf("int32", words, [words.length]);
      const { right, wrong } = callsOf(backend, refusals(dtype, backend.matrixDtypes)[i]!, place);
      right();
      expect(acceptedOf(op, wrong)).toEqual([]);
    });
  }
}
