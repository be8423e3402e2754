import { describe, expect, setDefaultTimeout, test } from "bun:test";
import type { LinearFusion } from "../../../../src/backend/backend.ts";
import {
  type AttendCall,
  continuesLayer,
  type LayerCall,
  type LinearCall,
  repeats,
} from "../../../../src/backend/cuda/ops/layer-ops.ts";
import { Tensor } from "../../../../src/backend/tensor.ts";
import { denseWeight } from "../../../../src/backend/weight.ts";
import { FakeOperands } from "./fake-operands.ts";

setDefaultTimeout(300_000);

const operands = new FakeOperands();
const { bf16, f32, batch, layerCache } = operands;
const [ROWS, WIDTH, UNITS] = [2, 512, 1024];
const [EPS, HEAD_EPS] = [1e-6, 1e-5];
const SILU = { kind: "silu", gated: true } as const;

const step = batch({ decodeRows: ROWS, prefill: [] });
const [residual, qkv] = [bf16(ROWS, WIDTH), bf16(ROWS, 1024)];
const [attended, activated] = [bf16(ROWS, 512), bf16(ROWS, UNITS)];
const cosSin = f32(2048, 64);

/** The five calls of a layer with weights, norms and a cache of its own. */
function layer(): [LinearCall, AttendCall, LinearCall, LinearCall, LinearCall] {
  const linear = (out: Tensor, x: Tensor, rows: number, fusion: LinearFusion): LinearCall => {
    return { kind: "linear", out, x, weight: denseWeight(bf16(rows, x.dim(1))), fusion };
  };
  const norm = () => ({ weight: bf16(WIDTH), eps: EPS });
  const spec = {
    ...{ numHeads: 8, numKvHeads: 4, headDim: 64, scale: 0.125, window: 0, cosSin },
    headNorm: { query: bf16(64), key: bf16(64), eps: HEAD_EPS },
  };
  return [
    linear(qkv, residual, 1024, { norm: norm() }),
    { kind: "attend", out: attended, qkv, cache: layerCache(4, 64), batch: step, spec },
    linear(residual, attended, WIDTH, { addTo: residual }),
    linear(activated, residual, 2 * UNITS, { norm: norm(), activation: SILU }),
    linear(residual, activated, WIDTH, { addTo: residual }),
  ];
}

const copy = ({ dtype, shape }: Tensor) => operands.of(dtype, ...shape);
/** The same memory, as fewer rows or as another type. */
const narrower = (tensor: Tensor) => tensor.rows(0, ROWS - 1);
const retyped = ({ buffer, shape }: Tensor) => new Tensor(buffer, "float16", shape);

function fused(call: LinearCall, changes: LinearFusion): LinearCall {
  return { ...call, fusion: { ...call.fusion, ...changes } };
}
function withSpec(call: AttendCall, changes: Partial<AttendCall["spec"]>): AttendCall {
  return { ...call, spec: { ...call.spec, ...changes } };
}

describe("a call repeats that of another layer", () => {
  test.each([0, 1, 2, 3, 4])("when only weights, norms, biases and caches differ: call %d", (position) => {
    const [first, second] = [layer()[position]!, layer()[position]!];
    expect(repeats(first, second)).toBe(true);
    if (second.kind === "linear") expect(repeats(first, fused(second, { bias: bf16(1024) }))).toBe(true);
  });

  test("not when it is one of the other kind", () => {
    const [product, attend] = layer();
    expect([repeats(product, attend), repeats(attend, product)]).toEqual([false, false]);
  });

  test.each<[string, 0 | 2 | 3 | 4, (call: LinearCall) => LinearCall]>([
    ["x", 0, (call) => ({ ...call, x: copy(call.x) })],
    ["x, of fewer rows", 0, (call) => ({ ...call, x: narrower(call.x) })],
    ["x, of another type", 0, (call) => ({ ...call, x: retyped(call.x) })],
    ["out", 3, (call) => ({ ...call, out: copy(call.out) })],
    ["outputs", 0, (call) => ({ ...call, weight: denseWeight(bf16(1032, WIDTH)) })],
    ["epsilon", 0, (call) => fused(call, { norm: { ...call.fusion.norm!, eps: 1e-5 } })],
    ["epsilon", 3, (call) => fused(call, { norm: { ...call.fusion.norm!, eps: 1e-5 } })],
    ["norm, where one has none", 2, (call) => fused(call, { norm: { weight: bf16(512), eps: EPS } })],
    ["activation", 3, (call) => fused(call, { activation: { kind: "gelu", gated: true } })],
    ["gating", 3, (call) => fused(call, { activation: { kind: "silu", gated: false } })],
    ["activation, where one has none", 3, (call) => fused(call, { activation: undefined })],
  ])("not with another %s: call %d", (_name, position, change) => {
    const [first, second] = [layer()[position], layer()[position]];
    expect([repeats(first, change(second)), repeats(change(first), second)]).toEqual([false, false]);
  });

  test.each<[string, (call: AttendCall) => AttendCall]>([
    ["batch, though it is equal", (call) => ({ ...call, batch: { ...call.batch } })],
    ["qkv", (call) => ({ ...call, qkv: copy(call.qkv) })],
    ["out", (call) => ({ ...call, out: copy(call.out) })],
    ["rotary table", (call) => withSpec(call, { cosSin: copy(call.spec.cosSin!) })],
    ["epsilon", (call) => withSpec(call, { headNorm: { ...call.spec.headNorm!, eps: 1e-3 } })],
    ["norm of values", (call) => withSpec(call, { headNorm: { ...call.spec.headNorm!, normsValues: true } })],
    ["norm, where one has none", (call) => withSpec(call, { headNorm: undefined })],
    ["number of heads", (call) => withSpec(call, { numHeads: 4 })],
    ["number of KV heads", (call) => withSpec(call, { numKvHeads: 2 })],
    ["size of heads", (call) => withSpec(call, { headDim: 32 })],
    ["scale", (call) => withSpec(call, { scale: 1 })],
    ["window", (call) => withSpec(call, { window: 100 })],
  ])("not with another %s: call 1", (_name, change) => {
    const [first, second] = [layer()[1], layer()[1]];
    expect([repeats(first, change(second)), repeats(change(first), second)]).toEqual([false, false]);
  });
});

describe("a call continues a layer", () => {
  test("in its place alone", () => {
    const calls = layer();
    const places = calls.keys().toArray();
    const going = places.map((place) =>
      places.filter((i) => continuesLayer(calls.slice(0, place), calls[i]!)),
    );
    // Without an activation, the product before attention is like the one after it.
    expect(going).toEqual([[0], [1], [2], [0, 3], [4]]);
  });

  test.each<[string, AttendCall["batch"]]>([
    ["a prompt of one token", batch({ decodeRows: ROWS - 1, prefill: [1] })],
    ["prompts of one token", batch({ decodeRows: 0, prefill: [1, 1] })],
    ["a prompt of several tokens", batch({ decodeRows: 0, prefill: [ROWS] })],
    // No batch is like this one.
    ["decode rows of several tokens", { ...batch({ decodeRows: ROWS, prefill: [] }), numTokens: ROWS + 1 }],
  ])("not with %s among its rows", (_name, other) => {
    const [first, attend] = layer();
    expect(continuesLayer([first], { ...attend, batch: other })).toBe(false);
  });

  test.each<[string, 0 | 2 | 3 | 4, (call: LinearCall) => LinearCall]>([
    ["without a norm", 0, (call) => fused(call, { norm: undefined })],
    ["with an activation", 0, (call) => fused(call, { activation: SILU })],
    ["with a sum", 0, (call) => fused(call, { addTo: call.out })],
    ["with an input from elsewhere", 2, (call) => ({ ...call, x: copy(call.x) })],
    ["with a norm", 2, (call) => fused(call, { norm: { weight: bf16(512), eps: EPS } })],
    ["without a sum", 2, (call) => fused(call, { addTo: undefined })],
    ["with a sum with something else", 2, (call) => fused(call, { addTo: copy(residual) })],
    ["with a sum to somewhere else", 2, (call) => ({ ...call, out: copy(residual) })],
    ["with an input from elsewhere", 3, (call) => ({ ...call, x: copy(call.x) })],
    ["without a norm", 3, (call) => fused(call, { norm: undefined })],
    [
      "with a norm of another epsilon",
      3,
      (call) => fused(call, { norm: { weight: bf16(WIDTH), eps: 1e-5 } }),
    ],
    ["with a bias", 3, (call) => fused(call, { bias: bf16(2 * UNITS) })],
    ["with a sum", 3, (call) => fused(call, { addTo: call.out })],
    ["with an input from elsewhere", 4, (call) => ({ ...call, x: copy(call.x) })],
    ["with a norm", 4, (call) => fused(call, { norm: { weight: bf16(UNITS), eps: EPS } })],
    ["with a bias", 4, (call) => fused(call, { bias: bf16(WIDTH) })],
    ["without a sum", 4, (call) => fused(call, { addTo: undefined })],
    ["with a sum with something else", 4, (call) => fused(call, { addTo: copy(residual) })],
    ["with a sum to somewhere else", 4, (call) => ({ ...call, out: copy(residual) })],
  ])("not %s: call %d", (_name, place, change) => {
    const calls = layer();
    expect(continuesLayer(calls.slice(0, place), change(calls[place]))).toBe(false);
  });

  test("not with attention to something else", () => {
    const [first, attend] = layer();
    expect(continuesLayer([first], { ...attend, qkv: copy(qkv) })).toBe(false);
    expect(continuesLayer([], attend as LayerCall)).toBe(false);
  });
});
