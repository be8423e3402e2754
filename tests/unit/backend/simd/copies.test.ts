import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { bytes } from "../../../../src/backend/cpu/host-buffer.ts";
import { PlacedBuffer } from "../../../../src/backend/simd/place.ts";
import { SimdBackend, type SimdOptions } from "../../../../src/backend/simd/simd-backend.ts";
import { Tensor } from "../../../../src/backend/tensor.ts";
import { denseWeight } from "../../../../src/backend/weight.ts";
import { AttentionStep } from "../../../contract/attention-step.ts";
import { Fixture } from "../../../contract/fixture.ts";
import { batchTensors, raggedBatch } from "../../../contract/ragged-batch.ts";

setDefaultTimeout(300_000);

const SPARED_BYTES = 2 ** 20;
const SMALL: SimdOptions = { threads: 1, placeBytes: 2 ** 22, sparedBytes: SPARED_BYTES };

/** Runs an op and gives its result; `elsewhere` gives a tensor to use in place of one, `fill` takes what is free where one lies. */
type Op = (fixture: Fixture, elsewhere: (tensor: Tensor) => Tensor, fill: (tensor: Tensor) => void) => Tensor;

const OPS: Readonly<Record<string, Op>> = {
  "a product": (fixture, elsewhere, fill) => {
    const [tokens, n, k] = [500, 1024, 32];
    const weight = denseWeight(fixture.normals([n, k]).tensor);
    const out = elsewhere(fixture.normals([tokens, n]).tensor);
    const x = elsewhere(fixture.normals([tokens, k]).tensor);
    const bias = elsewhere(fixture.normals([n]).tensor);
    fill(weight.data);
    fixture.backend.linear(out, x, weight, { bias, addTo: out });
    return out;
  },
  "a norm": (fixture, elsewhere, fill) => {
    const [tokens, width] = [6000, 64];
    const x = fixture.normals([tokens, width]).tensor;
    const weight = elsewhere(fixture.normals([width]).tensor);
    const out = elsewhere(fixture.normals([tokens, width]).tensor);
    fill(x);
    fixture.backend.rmsNorm(out, x, weight, 1e-6, out);
    return out;
  },
  attention: (fixture, elsewhere, fill) => {
    const rows = [
      [40, 3],
      [290, 290],
      [33, 1],
    ] as const;
    const batch = raggedBatch(fixture, rows, 16);
    const heads = { numHeads: 8, numKvHeads: 2, headDim: 64, rotaryDim: 32, blockSize: 16, headNorm: true };
    const { out, qkv, cache, spec } = new AttentionStep(fixture, batch, { ...heads, window: 0 });
    const result = elsewhere(out);
    const [tensors, projections] = [batchTensors(fixture, batch), elsewhere(qkv.tensor)];
    fill(cache.keys);
    fixture.backend.attend(result, projections, cache, tensors, spec);
    return result;
  },
};

function run(options: SimdOptions, op: Op, isElsewhere: boolean): Buffer {
  const backend = new SimdBackend(options);
  const fixture = new Fixture(backend);
  const elsewhere = (tensor: Tensor) => {
    const copy = new Tensor(backend.allocateShared(tensor.byteLength), tensor.dtype, tensor.shape);
    bytes(copy).set(bytes(tensor));
    return copy;
  };
  const fill = ({ buffer }: Tensor) => {
    while (buffer instanceof PlacedBuffer && buffer.place.take(2 ** 12, SPARED_BYTES) !== undefined);
  };
  try {
    const out = isElsewhere
      ? op(fixture, elsewhere, fill)
      : op(
          fixture,
          (tensor) => tensor,
          () => {},
        );
    return Buffer.from(bytes(out));
  } finally {
    fixture.dispose();
    backend.dispose();
  }
}

describe("where a place has little memory left", () => {
  for (const [name, op] of Object.entries(OPS)) {
    test(`${name} copies some rows at a time of what lies elsewhere`, () => {
      expect(run(SMALL, op, true).equals(run({ threads: 1 }, op, false))).toBe(true);
    });
  }
});
