import type { Case } from "../backend.contract.ts";
import { expectClose, expectEqual } from "../compare.ts";
import * as reference from "../reference.ts";

const EPS = 1e-6;

export function normProjectionsCases(addCase: Case): void {
  for (const [tokens, queryWidth, keyWidth] of [
    [1, 128, 64],
    [17, 256, 256],
    [3, 1001, 13],
    [130, 4096, 1024],
  ] as const) {
    addCase(
      "normProjections",
      `${tokens} tokens, queries of ${queryWidth}, keys of ${keyWidth}`,
      (fixture) => {
        const width = queryWidth + 2 * keyWidth;
        const qkv = fixture.state(fixture.random.normals(tokens * width, 3), [tokens, width]);
        const query = fixture.normals([queryWidth], 0.3, 1);
        const key = fixture.normals([keyWidth], 0.3, 1);
        fixture.backend.normProjections(qkv.tensor, { query: query.tensor, key: key.tensor, eps: EPS });
        const out = fixture.readFloats(qkv.tensor);
        for (let t = 0; t < tokens; t++) {
          const part = (from: Float32Array, start: number, length: number) =>
            from.subarray(t * width + start, t * width + start + length);
          for (const [name, weight, start] of [
            ["queries", query.values, 0],
            ["keys", key.values, queryWidth],
          ] as const) {
            const expected = reference.rmsNorm(part(qkv.values, start, weight.length), weight, EPS);
            const precision = { dtype: fixture.dtype, reduction: weight.length, intermediates: 1 };
            expectClose(name, part(out, start, weight.length), expected, precision);
          }
          const values = [out, qkv.values].map((from) => part(from, queryWidth + keyWidth, keyWidth));
          expectEqual("values", values[0]!, values[1]!);
        }
      },
    );
  }
}
