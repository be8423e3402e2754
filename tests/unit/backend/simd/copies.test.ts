import { describe, expect, setDefaultTimeout, spyOn, test } from "bun:test";
import { CpuBackend } from "../../../../src/backend/cpu/cpu-backend.ts";
import { bytes } from "../../../../src/backend/cpu/host-buffer.ts";
import { type Place, PlacedBuffer } from "../../../../src/backend/simd/place.ts";
import { SimdBackend, type SimdOptions } from "../../../../src/backend/simd/simd-backend.ts";
import { Tensor } from "../../../../src/backend/tensor.ts";
import { denseWeight } from "../../../../src/backend/weight.ts";
import { AttentionStep } from "../../../contract/attention-step.ts";
import { Fixture } from "../../../contract/fixture.ts";
import { batchTensors, raggedBatch } from "../../../contract/ragged-batch.ts";
import { type SlotParams, sampleRows, slotTensors } from "../../../contract/slot-table.ts";

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

function placeOf({ buffer }: Tensor): Place | undefined {
  return buffer instanceof PlacedBuffer ? buffer.place : undefined;
}

/** Takes what is free where a tensor lies, but for what tensors leave. */
function fill(tensor: Tensor): void {
  while (placeOf(tensor)?.take(2 ** 12, SPARED_BYTES) !== undefined);
}

function run(options: SimdOptions, op: Op, isElsewhere: boolean): Buffer {
  const backend = new SimdBackend(options);
  const fixture = new Fixture(backend);
  const elsewhere = (tensor: Tensor) => {
    const copy = new Tensor(backend.allocateShared(tensor.byteLength), tensor.dtype, tensor.shape);
    bytes(copy).set(bytes(tensor));
    return copy;
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

test("tokens are the kernels' where logits and processed ones lie in two places", () => {
  const reference = spyOn(CpuBackend.prototype, "sample");
  try {
    const [first, second] = [{ threads: 1 }, SMALL].map((options) => {
      const backend = new SimdBackend(options);
      const fixture = new Fixture(backend);
      const [rows, vocab] = [5, 3000];
      const logits = fixture.normals([rows, vocab]).tensor;
      if (options === SMALL) fill(logits);
      const processed = fixture.normals([rows, vocab]).tensor;
      expect(placeOf(processed) === placeOf(logits)).toBe(options !== SMALL);
      const params = Array.from({ length: rows }, (_, i): SlotParams => {
        const common = { topK: 40, topP: 0.9, seed: [i, 3], tokens: [1] } as const;
        return i % 2 === 0 ? common : { ...common, allowed: [7] };
      });
      const slots = slotTensors(fixture, params, { vocab });
      const out = fixture.output("int32", [rows]);
      const all = params.map((_, i) => i);
      backend.sample(out, logits, processed, sampleRows(fixture, all, all), slots);
      const tokens = [...fixture.readInts(out)];
      fixture.dispose();
      backend.dispose();
      return tokens;
    });
    expect(second).toEqual(first!);
    expect(reference).not.toHaveBeenCalled();
  } finally {
    reference.mockRestore();
  }
});
