import { expect } from "bun:test";
import { denseWeight } from "../../../src/backend/weight.ts";
import { InvariantError } from "../../../src/base/errors.ts";
import type { Case } from "../backend.contract.ts";
import { batchTensors, raggedBatch } from "../ragged-batch.ts";

export function checksCases(addCase: Case): void {
  const refuse = (body: () => void, message: RegExp) => {
    expect(body).toThrow(InvariantError);
    expect(body).toThrow(message);
  };

  addCase("linear", "refuses wrong extents, dtypes and overlap, naming op and tensor", (fixture) => {
    const { backend, dtype } = fixture;
    const input = (...shape: number[]) => fixture.normals(shape).tensor;
    const x = input(3, 8);
    const weight = denseWeight(input(4, 8));
    const out = fixture.output(dtype, [3, 4]);
    refuse(() => backend.linear(fixture.output(dtype, [3, 5]), x, weight), /linear: out is .*\[3, 4\]/);
    refuse(() => backend.linear(out, input(3, 7), weight), /linear: weight/);
    refuse(() => backend.linear(fixture.output("int32", [3, 4]), x, weight), /linear: out is int32/);
    refuse(() => backend.linear(out, x, weight, { bias: input(3) }), /linear: bias/);
    refuse(() => backend.linear(out, x, weight, { norm: { weight: input(4), eps: 1e-6 } }), /linear: norm/);
    refuse(() => backend.linear(out, x, weight, { addTo: input(3, 5) }), /linear: addTo/);
    const gated = { kind: "silu", gated: true } as const;
    refuse(() => backend.linear(out, x, weight, { activation: gated }), /linear: out is .*\[3, 2\]/);
    const odd = denseWeight(input(5, 8));
    refuse(() => backend.linear(out, x, odd, { activation: gated }), /linear: 5 gated outputs/);
    const plain = { kind: "silu", gated: false } as const;
    refuse(() => backend.linear(out, x, weight, { activation: plain, addTo: out }), /activation and a sum/);
    if (dtype !== "float32") {
      const wide = fixture.output("float32", [3, 4]);
      for (const fusion of [{ bias: input(4) }, { activation: plain }, { addTo: out }])
        refuse(() => backend.linear(wide, x, weight, fusion), /linear: out is float32/);
    }
    const square = input(8, 8);
    refuse(() => backend.linear(square, square, denseWeight(input(8, 8))), /out overlaps x/);
    const long = fixture.output(dtype, [5, 4]);
    const [upper, lower] = [long.rows(0, 3), long.rows(2, 5)];
    refuse(() => backend.linear(upper, x, weight, { addTo: lower }), /out overlaps addTo/);
    expect(fixture.readFloats(out).every(Number.isNaN)).toBe(true);
  });

  addCase("attend", "refuses what does not fit the batch, the cache or the heads", (fixture) => {
    const { backend, dtype } = fixture;
    const batch = batchTensors(fixture, raggedBatch(fixture, [[5, 2]], 16));
    const blocks = batch.blockTables.dim(1) + 3;
    const cacheOf = (...shape: number[]) => ({
      keys: fixture.output(dtype, shape),
      values: fixture.output(dtype, shape),
    });
    const heads = { numHeads: 4, numKvHeads: 2, headDim: 32, scale: 1, window: 0 };
    const spec = { ...heads, cosSin: fixture.input(new Float32Array(160), [5, 32], "float32").tensor };
    const qkv = fixture.output(dtype, [2, 256]);
    const out = fixture.output(dtype, [2, 128]);
    const cache = cacheOf(blocks, 2, 16, 32);
    const run = (changed: Partial<typeof spec> & object) =>
      backend.attend(out, qkv, cache, batch, { ...spec, ...changed });
    refuse(() => run({ numKvHeads: 3 }), /attend: 4 query heads over 3/);
    refuse(() => run({ numHeads: 2 }), /attend: qkv is/);
    refuse(() => run({ window: -1 }), /attend: window -1/);
    refuse(() => run({ cosSin: fixture.output("float32", [5, 34]) }), /attend: rotaryDim 34, headDim 32/);
    refuse(() => run({ cosSin: fixture.output("float32", [5, 15]) }), /attend: rotaryDim 15/);
    const headNorm = { query: fixture.normals([32]).tensor, key: fixture.normals([31]).tensor, eps: 1e-6 };
    refuse(() => run({ headNorm } as object), /attend: headNorm.key/);
    const attend = (...changed: [typeof out, typeof qkv, typeof cache]) =>
      backend.attend(...changed, batch, spec);
    refuse(() => attend(fixture.output(dtype, [2, 127]), qkv, cache), /attend: out/);
    refuse(() => attend(out, fixture.output(dtype, [3, 256]), cache), /attend: batch of 2 tokens/);
    refuse(() => attend(out, qkv, cacheOf(blocks, 2, 8, 32)), /attend: keys/);
    refuse(() => attend(out, qkv, { ...cache, values: cacheOf(blocks, 1, 16, 32).values }), /attend: values/);
    refuse(() => attend(qkv.reshape(4, 128).rows(0, 2), qkv, cache), /attend: out overlaps qkv/);
    const shared = cache.keys.reshape(cache.keys.size / 256, 256).rows(0, 2);
    refuse(() => attend(out, shared, cache), /attend: qkv overlaps keys/);
    const late = { ...batch, decodeRows: 2 };
    refuse(() => backend.attend(out, qkv, cache, late, spec), /attend: 2 decode rows of 1/);
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
